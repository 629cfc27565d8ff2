import subprocess
import sys

HEAVY = ["lightning", "pytorch_lightning", "mlflow", "ffcv", "jsonargparse", "torchvision"]


def test_spectral_needs_torch_alone() -> None:
    code = f"import sys, unidd_pl.spectral; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_public_names_exist_once() -> None:
    from unidd_pl import spectral

    assert all(hasattr(spectral, name) for name in spectral.__all__)
    assert len(set(spectral.__all__)) == len(spectral.__all__)
