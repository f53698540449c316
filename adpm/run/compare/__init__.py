"""--mode=compare, piece by piece.

method, grid     what is compared, and what of it cannot exist as configured
cells, collect   its cells, measured once and kept under what they depend on; and read as results
results          what was found, as plain numbers and pictures; what follows knows nothing else
merit            the two figures of merit, and which differences can be told
tables           CSV, Markdown and LaTeX
verdict          who wins, what is tied, and what one other choice would change
figures, board   pictures and TensorBoard
"""
