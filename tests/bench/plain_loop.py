"""The loop that people write: webdataset, timm, torch.save. What `faults.py` breaks beside Vitrail's.

python tests/bench/plain_loop.py DATA OUTPUT STEPS     (DATA: vitrail shards build digits DATA)
"""

import io
import json
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

EVERY = 2  # steps between checkpoints


def main(data: str, output: str, steps: int) -> None:
    folder = Path(output)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    net = timm.create_model(
        "deit_tiny_patch16_224", num_classes=10, img_size=16, patch_size=4, embed_dim=64, depth=4, num_heads=2
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    done = 0
    if (folder / "checkpoint.pt").exists():
        saved = torch.load(folder / "checkpoint.pt")
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    transform = create_transform(16, is_training=True, auto_augment="rand-m4-mstd0.5-inc1")
    tars = [str(path) for path in sorted((Path(data) / "train").glob("*.tar"))]
    samples = wds.WebDataset(tars, shardshuffle=len(tars)).repeat().shuffle(500).to_tuple("png", "cls")
    # not decode("pil"), which people write: it unpickles members that a data set brings
    samples = samples.map_tuple(lambda content: transform(Image.open(io.BytesIO(content)).convert("RGB")), int)
    loader = DataLoader(samples, batch_size=8, num_workers=1)
    with (folder / "log.jsonl").open("a", buffering=1) as log:
        for images, labels in loader:
            if done >= steps:
                break
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            log.write(json.dumps({"step": done, "loss": loss.item()}) + "\n")
            if done % EVERY == 0:
                state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                torch.save(state, folder / "checkpoint.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
