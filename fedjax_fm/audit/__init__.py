"""`fedjax-fm audit`: what a trained run gives away of its clients' data."""
