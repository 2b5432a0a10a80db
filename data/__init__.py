"""Shipped data: tasks, trained weights, recorded traces; read them through importlib.resources."""

if __name__ != "fusionlab_data":  # found as a folder of the current directory, not as the installed package
    raise ImportError("the folder data/ is a package named fusionlab_data; write `import fusionlab_data`")
