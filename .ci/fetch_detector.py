"""Take MediaPipe's two hand models out of its wheel: fetch_detector.py FOLDER. `make detector` calls it.

The wheel is not installed: it wants a NumPy below 2. Models and wheel are Apache-2.0 (the licence is copied).
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "mediapipe==0.10.21"
WANTED = ("palm_detection_full.tflite", "hand_landmark_full.tflite", "LICENSE")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(folder: Path) -> int:
    """Download, unpack, and say where the files are."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.11", "--dest", place, WHEEL]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        if subprocess.run(command, check=False, timeout=600).returncode:
            sys.stderr.write(f"{WHEEL} could not be downloaded, see above: the models are in it alone\n")
            return 2
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if Path(name).name in WANTED:
                    (folder / Path(name).name).write_bytes(wheel.read(name))
    sys.stdout.write(f"Hand detector: {', '.join(sorted(p.name for p in folder.iterdir()))} in {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
