"""--mode=compare, piece by piece.

method, grid     what is compared, and what of it cannot exist
cells            its cells, measured once and kept under what they depend on
results          what was found, as plain numbers and pictures; what follows knows nothing else
merit            the two figures of merit, and which differences can be told
verdict          who wins and why, in words: neighbours (one choice changed), why (a bound in parts), reasons
sheets           CSV, Markdown and LaTeX, with markdown and latex
figures          by name; style, measures and scales in common
board            TensorBoard
"""
