"""`python -m fedjax_fm`: the command `fedjax-fm`."""

from fedjax_fm.cli import main

if __name__ == "__main__":
    main()
