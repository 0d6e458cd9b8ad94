"""What is measured: the rows of the tables, each beside C."""
