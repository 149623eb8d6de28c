#!/usr/bin/env python3
"""Trains a model by a recipe: `python train.py -c mbv2_mish --data-dir DIR`, the same as `imagenette-zoo train`."""

from imagenette_zoo.cli.main import train_main

if __name__ == '__main__':
    raise SystemExit(train_main())
