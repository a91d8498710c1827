"""Pictures and widgets that one notebook alone uses, a module each."""
