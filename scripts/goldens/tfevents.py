"""Writes test/goldens/tfevents.json: an event file as TensorBoard's own writer writes it, in hexadecimal, one record each for the
version, scalars and a picture. With a path, reads that event file with TensorBoard's own reader instead and prints what it holds:

    pip install tensorboard
    python scripts/goldens/tfevents.py [EVENT_FILE]
"""

import io
import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(range(200))


def record(event):
    buffer = io.BytesIO()
    buffer.close, close = lambda: None, buffer.close
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue().hex()


def write():
    Value, Image = Summary.Value, Summary.Image
    image = Image(height=7, width=300, colorspace=3, encoded_image_string=PNG)
    records = {
        "version": Event(wall_time=1700000000.25, file_version="brain.Event:2"),
        "scalars": Event(
            wall_time=1700000001.5,
            step=123456,
            summary=Summary(
                value=[Value(tag="train/loss", simple_value=0.1), Value(tag="train/learningRate", simple_value=-5e-4)]
            ),
        ),
        "image": Event(
            wall_time=1700000002.75,
            summary=Summary(value=[Value(tag="validation/a sks dog, süß", image=image)]),
        ),
    }
    text = json.dumps({"png": PNG.hex(), "records": {k: record(e) for k, e in records.items()}}, indent=1)
    (GOLDENS / "tfevents.json").write_text(text + "\n")


def show(path):
    for event in LegacyEventFileLoader(path).Load():
        values = [
            (v.tag, f"{v.image.width} x {v.image.height}, {len(v.image.encoded_image_string)} bytes")
            if v.HasField("image")
            else (v.tag, v.simple_value)
            for v in event.summary.value
        ]
        print(event.step, event.file_version or dict(values))


show(sys.argv[1]) if len(sys.argv) > 1 else write()
