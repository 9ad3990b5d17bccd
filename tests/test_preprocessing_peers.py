"""Preprocessing against the original libraries on the same pictures, where they are installed: at most 1/255 apart.

timm's `create_transform` works on Pillow's images. Of transformers the processors with the backend "pil" are taken;
DINOv3 has none, and resizes floats.
"""

import numpy as np
import pytest
from checks import peer

from cvit.pictures.preprocessing import Preprocessing

Image = pytest.importorskip("PIL.Image")
torch = peer("torch")

SIZES = [(250, 249), (249, 251), (333, 500), (37, 91), (1, 300), (224, 224), (500, 223), (480, 640), (7, 2)]  # (h, w)


def picture(height, width, mode="RGB"):
    """Edges, noise and slopes, for every filter something to get wrong."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([127 + 120 * np.sin(x / 3 + y / 7), (x * 5 + y * 3) % 256, 255 * ((x // 4 + y // 5) % 2)], -1)
    noisy = rng.random((height, width)) < 0.3
    pixels[noisy] = rng.integers(0, 256, (noisy.sum(), 3))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def assert_same_pixels(preprocessing, image, theirs):
    """At most 1/255 of the full range apart before normalization, and where bytes are resized, hardly ever apart."""
    ours = preprocessing(image)[0]
    theirs = np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    std = np.array(preprocessing.std)[:, None, None]
    apart = np.abs(ours - theirs) * std
    assert apart.max() <= 1.001 / 255
    assert (apart > 0.01 / 255).mean() < 1e-3


TIMM = {
    "defaults": dict(architecture="vit"),
    "0.9": dict(crop_pct=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "0.875": dict(crop_pct=0.875, interpolation="bilinear"),
    "0.95 at 240": dict(input_size=(3, 240, 240), crop_pct=0.95),
    "1.0": dict(crop_pct=1.0, interpolation="bicubic"),
    "more than the picture": dict(input_size=(3, 96, 96), crop_pct=1.1),
    "squash": dict(input_size=(3, 128, 128), crop_pct=0.95, crop_mode="squash"),
    "squash, whole": dict(input_size=(3, 96, 160), crop_pct=1.0, crop_mode="squash", interpolation="lanczos"),
    "border": dict(crop_pct=1.0, crop_mode="border"),
    "border, cropped": dict(input_size=(3, 100, 100), crop_pct=0.9, crop_mode="border"),
    "border, not square": dict(input_size=(3, 100, 160), crop_pct=0.93, crop_mode="border"),
    "not square": dict(input_size=(3, 112, 160), crop_pct=0.9, interpolation="bilinear"),
    "zeros": dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="box"),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", TIMM)
def test_timm(case, size):
    data = peer("timm.data")
    transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=TIMM[case]))
    image = picture(*size)
    try:
        theirs = transform(image)
    except ValueError:  # an edge of 0 pixels
        pytest.skip("timm has no answer")
    assert_same_pixels(Preprocessing.from_timm(TIMM[case]), image, theirs)


def test_timm_settings_come_back():
    data = peer("timm.data")
    for config in TIMM.values():
        expected = data.resolve_data_config(pretrained_cfg=config)
        written = Preprocessing.from_timm(config).to_timm()
        assert {key: written[key] for key in expected} == expected
        assert Preprocessing.from_timm(written) == Preprocessing.from_timm(config)


def test_every_vit_of_timm_is_read():
    """Sizes, fractions and modes of all of timm's own settings, and their way back."""
    timm = peer("timm")
    for name in timm.list_pretrained("*vit*"):
        config = timm.get_pretrained_cfg(name).to_dict()
        preprocessing = Preprocessing.from_timm(config)
        again = Preprocessing.from_timm(preprocessing.to_timm())
        assert again == preprocessing, name
        assert preprocessing.to_timm()["crop_pct"] == config["crop_pct"], name


HF = {
    "ViT": {},
    "ViT, other values": dict(size=96, resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]),
    "ViT, no rescale": dict(do_rescale=False, image_mean=[100.0, 110.0, 120.0], image_std=[60.0, 60.0, 60.0]),
    "ViT, no normalization": dict(do_normalize=False),
    "DeiT": {},
    "DeiT, no resize": dict(do_resize=False, crop_size={"height": 65, "width": 110}),
    "CLIP": {},
    "CLIP, not square": dict(size={"shortest_edge": 100}, crop_size={"height": 93, "width": 120}),
    "CLIP, old": dict(size=91, crop_size=80, resample=1),
    "Bit": dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
    "Bit, DINOv2 at 99": dict(size={"shortest_edge": 117}, crop_size={"height": 99, "width": 99}),
    "Siglip": {},
    "Siglip, not square": dict(size={"height": 64, "width": 144}, resample=2),
    "Beit": {},
    "Beit, cropped": dict(size=256, do_center_crop=True, crop_size=224),
    "DINOv3ViT": {},
    "DINOv3ViT, other values": dict(size={"height": 80, "width": 112}, resample=3),
}


def processor_of(case):
    """The processor of transformers, and the file's content."""
    transformers = peer("transformers")
    kind = case.partition(",")[0]
    name = f"{kind}ImageProcessor"
    backend = getattr(transformers, name if kind == "DINOv3ViT" else f"{name}Pil", None)
    if backend is None:
        pytest.skip(f"this transformers has no {name}Pil")
    return backend(**HF[case]), {"image_processor_type": name, **HF[case]}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", HF)
def test_transformers(case, size):
    processor, config = processor_of(case)
    image = picture(*size)
    theirs = processor(image, return_tensors="np" if case[:4] != "DINO" else "pt").pixel_values[0]
    preprocessing = Preprocessing.from_hf(config)
    ours_of_full = Preprocessing.from_hf(processor.to_dict())
    assert ours_of_full == preprocessing  # what stands in the file and what the class fills in are the same
    if case == "ViT, no rescale":  # bytes, not parts of 1
        theirs, preprocessing = theirs.astype(np.float64), preprocessing
        assert np.abs(preprocessing(image)[0] - theirs).max() <= 1 / 60
        return
    assert_same_pixels(preprocessing, image, theirs)


@pytest.mark.parametrize("case", HF)
def test_transformers_reads_what_is_written(case):
    processor, config = processor_of(case)
    preprocessing = Preprocessing.from_hf(config)
    written = preprocessing.to_hf()
    assert Preprocessing.from_hf(written) == preprocessing
    import transformers

    name = written.pop("image_processor_type")
    other = getattr(transformers, name if case[:4] == "DINO" else f"{name}Pil")(**written)
    image = picture(130, 171)
    a, b = (p(image, return_tensors="pt").pixel_values for p in (processor, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_modes_as_transformers_converts_them(mode):
    processor, config = processor_of("CLIP")
    image = picture(60, 80).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.arange(4800).reshape(60, 80).astype(np.uint8)))
    theirs = processor(image, return_tensors="np").pixel_values[0]
    assert_same_pixels(Preprocessing.from_hf(config), image, theirs)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
def test_modes_as_timm_converts_them(mode):
    """timm's data sets convert to RGB, which drops alpha."""
    data = peer("timm.data")
    image = picture(60, 80).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.arange(4800).reshape(60, 80).astype(np.uint8)))
    theirs = data.create_transform(**data.resolve_data_config(pretrained_cfg=TIMM["0.9"]))(image.convert("RGB"))
    assert_same_pixels(Preprocessing.from_timm(TIMM["0.9"]), image, theirs)
