"""`dray tune`: what is fastest for a model on this processor, measured and kept."""
