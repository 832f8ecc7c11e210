"""Callbacks that work in any Lightning project."""

if __name__ == "callbacks":
    raise ModuleNotFoundError("Import zoo.callbacks, not callbacks.")
