"""Run a timm folder on pictures in a process of its own, with timm and without deitctl.

    python -I run_timm.py FOLDER IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [1,N,K], logits.
"""
