"""``python -m paramserver``: the command line."""

from paramserver.cli.main import main

if __name__ == "__main__":
    main(prog_name="paramserver")
