"""Figures and live views of traces; drawn from saved traces alone, without any model.

>>> from fusionlab_widgets.figures import weight_heatmap                  # doctest: +SKIP
"""

if __name__ != "fusionlab_widgets":  # found as a folder of the current directory, not as the installed package
    raise ImportError("the folder widgets/ is a package named fusionlab_widgets; write `import fusionlab_widgets`")
