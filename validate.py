#!/usr/bin/env python3
"""Validates models: `python validate.py --model runs/NAME` (the same as `imagenette-zoo validate`)."""

from imagenette_zoo.cli.main import validate_main

if __name__ == '__main__':
    raise SystemExit(validate_main())
