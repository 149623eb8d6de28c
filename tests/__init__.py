"""Where there is no GPU, Triton's kernels are run by its interpreter; it has to know before anything imports it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'
