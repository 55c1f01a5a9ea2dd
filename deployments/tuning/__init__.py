"""The program behind `dray tune`: compares an engine's variants on this machine."""
