"""The paper's tables and figures: variants run over several seeds, collected beside the paper's numbers."""
