"""--mode=compare, piece by piece.

method, grid     what is compared, and what of it cannot exist as configured
cells            its cells, measured once and kept under what they depend on
results          what was found, as plain numbers and pictures; what follows knows nothing else
merit            the two figures of merit, and which differences can be told
glossary         what the names in it mean
verdict          who wins and why, in words: answer, neighbours (one choice changed), why (a bound in parts), reasons,
                 notes
sheets           CSV, Markdown and LaTeX, with markdown and latex
figures          by name; style, measures and scales in common
board            TensorBoard
"""
