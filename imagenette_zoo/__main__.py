"""`python -m imagenette_zoo`."""

from .cli.main import main

if __name__ == '__main__':
    raise SystemExit(main())
