"""Videos of evaluated policies: their paths, and the GIF that TensorBoard shows."""

from __future__ import annotations

import io
from pathlib import Path

EVALUATIONS_FOLDER = "evaluations"
_GIF_RATE = 10.0  # frames per second, approximately
_GIF_FRAMES = 300  # at most


def film_path(run_dir: Path, env_steps: int) -> Path:
    """Returns the path of the video of the policy that was trained for `env_steps` env steps."""
    return run_dir / EVALUATIONS_FOLDER / "videos" / f"policy_{env_steps:012d}.mp4"


def animation(path: Path) -> bytes:
    """Returns the beginning of a video as a GIF of at most 300 frames, at half width and height.

    Raises:
        OSError: the file is missing or contains no video.
    """
    # These packages are imported here, because most runs film nothing and need neither.
    import cv2
    from PIL import Image

    file = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frame_rate = file.get(cv2.CAP_PROP_FPS)
    step = max(1, round(frame_rate / _GIF_RATE))
    pictures: list[Image.Image] = []
    while len(pictures) < _GIF_FRAMES and file.grab():
        _, frame = file.retrieve()
        small = cv2.resize(frame[..., ::-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        pictures.append(Image.fromarray(small))
        for _ in range(step - 1):
            file.grab()
    file.release()
    if not pictures:
        raise OSError(f"{path} contains no video")
    seconds = step / frame_rate
    buffer = io.BytesIO()
    first, *others = pictures
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=1000 * seconds, loop=0)
    return buffer.getvalue()
