"""Where a decoder's attention has collapsed: the rank and column mass of every head.

`watch` sees the model compute its attention, `measure` is the arithmetic on the matrices, `analysis` joins them, and
`flow` is the whole way from a model to the folder of an analysis. Nothing is imported here, so that recipes, which may
name an analysis, are listed without torch.
"""
