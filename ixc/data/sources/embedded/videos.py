"""Short videos: a coloured shape that moves, grows or shrinks."""

import io
import random

import av
from PIL import Image

from ixc.data.sources import File, Row
from ixc.data.sources.embedded.drawing import (
    COLOURS,
    GROUNDS,
    THINGS,
    Ground,
    Thing,
    draw_thing,
    draw_until,
    held_out,
    one_of,
)

FPS, FRAMES, SIDE = 8, 32, 64
EVENTS = {
    "moves left": ((0.8, 0.5), (0.2, 0.5), (0.18, 0.18)),
    "moves right": ((0.2, 0.5), (0.8, 0.5), (0.18, 0.18)),
    "moves up": ((0.5, 0.8), (0.5, 0.2), (0.18, 0.18)),
    "moves down": ((0.5, 0.2), (0.5, 0.8), (0.18, 0.18)),
    "grows": ((0.5, 0.5), (0.5, 0.5), (0.1, 0.42)),
    "shrinks": ((0.5, 0.5), (0.5, 0.5), (0.42, 0.1)),
}
"""Where the shape starts and ends, and its radius then and there, in sides of the frame."""


def video(rng: random.Random, validation: bool) -> list[Row]:
    """Four seconds of one thing: what happens, and which colour has it?

    Validation holds out things in an event on a ground.
    """

    def draw() -> tuple[Thing, str, Ground]:
        return rng.choice(THINGS), rng.choice(list(EVENTS)), rng.choice(GROUNDS)

    thing, event, ground = draw_until(draw, lambda drawn: held_out(*drawn) == validation)
    colour, shape = thing
    file = File(kind="video", data=encode(_frames(thing, event, ground)))
    what = (
        f"What does the {shape} do?",
        f"What happens to the {shape}?",
        f"Describe what the {shape} does.",
    )
    which = (
        f"What colour is the {shape}?",
        f"Tell me the colour of the {shape}.",
        f"Which colour has the {shape}?",
    )
    return [
        one_of(rng, "video", what, [file], event, list(EVENTS), f"The {shape} {{}}."),
        one_of(rng, "video", which, [file], colour, list(COLOURS), f"The {shape} is {{}}."),
    ]


def _frames(thing: Thing, event: str, ground: Ground) -> list[Image.Image]:
    (x0, y0), (x1, y1), (r0, r1) = EVENTS[event]
    frames = []
    for i in range(FRAMES):
        # One frame a second is seen: the last of them shows the end.
        t = min(i / (FRAMES - FPS), 1.0)
        x = x0 + t * (x1 - x0)
        y = y0 + t * (y1 - y0)
        radius = r0 + t * (r1 - r0)
        frame = Image.new("RGB", (SIDE, SIDE), ground)
        draw_thing(frame, thing, (x * SIDE, y * SIDE), radius * SIDE)
        frames.append(frame)
    return frames


def encode(frames: list[Image.Image]) -> bytes:
    """An H.264 mp4; one thread, so that equal frames give equal bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"preset": "ultrafast", "crf": "18", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return buffer.getvalue()
