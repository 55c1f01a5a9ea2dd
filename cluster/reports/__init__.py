"""What administrators read of usage, money, requests and errors: made from the records, for commands and HTTP."""
