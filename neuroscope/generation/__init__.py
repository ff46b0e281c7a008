"""Generation: making many images in batches, keeping what is done in a ledger, and the runs that methods stand on."""
