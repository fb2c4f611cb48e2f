"""Networks that others published, random and tiny here, against the libraries and the code that they come from."""

from __future__ import annotations

from pathlib import Path

import cv2
import miniature
import numpy as np
import pytest
import timm
import torch
from cleanfid.features import build_feature_extractor
from cleanfid.fid import compare_folders, get_folder_features
from cleanfid.fid import kernel_distance as kernel_distance_of_clean_fid
from PIL import Image
from scipy.linalg import sqrtm
from torchmetrics.multimodal.clip_score import CLIPScore
from torchvision.models import inception_v3
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from transformers import AutoProcessor, CLIPModel, CLIPProcessor, Qwen2VLForConditionalGeneration

from bench.codec import decode
from bench.errors import BenchError
from bench.metrics.distance import FeatureSet, frechet_distance, kernel_distance
from bench.registry import CLASSIFIERS, load_object
from bench.scoring import features_of, judge_all
from bench.suites.unlearncanvas.vocabulary import OBJECTS, THEMES
from classifiers.qwen2_vl import QUESTION

CPU = torch.device("cpu")
FEW = 4
"""Features of a distance of ten pictures; all need thousands."""


def load(kind: str, path: Path, **more: object) -> object:
    return load_object(CLASSIFIERS[kind])(path, CPU, **more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    return draw(folder, 3, rng=0)


def draw(folder: Path, count: int, rng: int) -> Path:
    """Smooth random pictures."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(rng)
    for number in range(count):
        smooth = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((96, 80), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{number:02}.jpg")
    return folder


def pixels(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.stack([decode(path.read_bytes()) for path in sorted(folder.iterdir())]))


def test_the_classifiers_are_those_of_the_public_code(tmp_path: Path, pictures: Path) -> None:
    folder = miniature.classifiers(tmp_path / "classifiers")
    judge = load("unlearncanvas", folder, styles=THEMES, objects=OBJECTS)
    found = judge_all(judge, pixels(pictures))
    transform = Compose([Resize((224, 224)), ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted(pictures.iterdir())])
    for name, classes, logits in (("style50.pth", 51, found.style), ("style50_cls.pth", 20, found.object)):
        network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=classes).eval()
        network.load_state_dict(torch.load(folder / name, weights_only=True)["model_state_dict"])
        with torch.no_grad():
            torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-4)


def test_torchvision_features_are_those_of_the_public_fid(tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    network = inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # as of one batch, so that random weights neither die out nor explode
    with torch.no_grad():
        network.train()(torch.randn(2, 3, 299, 299))
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    own = load("inception-torchvision", tmp_path / "inception.pth")
    found = features_of(own, pixels(pictures))
    assert found.dtype == np.float16
    expected = public_features(network, pictures)
    # OpenCV's first resize rounds in fixed point: single pixels differ by a level.
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999

    folders = [draw(tmp_path / f"{rng}", 10, rng) for rng in (1, 2)]
    measured = frechet_distance(*(FeatureSet(features_of(own, pixels(folder))[:, :FEW]) for folder in folders))
    x, y = (public_features(network, folder)[:, :FEW].astype(np.float64) for folder in folders)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # Those levels move the covariance of four features of ten pictures by a percent or two.
    assert measured == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real), rel=0.03)


def public_features(network: torch.nn.Module, folder: Path) -> np.ndarray:
    """As UnlearnCanvas' FID script takes them, float32 [n, 2048]."""
    seen: list[torch.Tensor] = []
    hook = network.eval().Mixed_7c.register_forward_hook(lambda module, inputs, out: seen.append(out.mean((2, 3))))
    images = []
    for path in sorted(folder.iterdir()):
        own = cv2.resize(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), (512, 512))
        images.append(cv2.resize(own.astype(np.float32) / 255, (299, 299)) * 2 - 1)
    with torch.no_grad():
        network(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    hook.remove()
    return seen[0].numpy()


def test_clean_fid_features_are_clean_fid_s(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature.inception(tmp_path / "inception-2015-12-05.pt")
    own = load("inception-clean-fid", tmp_path / "inception-2015-12-05.pt")
    found = features_of(own, pixels(pictures))
    monkeypatch.setattr("cleanfid.features.InceptionV3W", lambda *a, **k: _wrapped(tmp_path))
    extractor = build_feature_extractor("clean", device=CPU, use_dataparallel=False)
    expected = get_folder_features(str(pictures), model=extractor, num_workers=0, mode="clean", device=CPU, verbose=False)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())

    folders = [draw(tmp_path / f"{rng}", 10, rng) for rng in (1, 2)]
    sets = [FeatureSet(features_of(own, pixels(folder))[:, :FEW]) for folder in folders]
    more = {"num_workers": 0, "mode": "clean", "device": CPU, "verbose": False}

    def few(images: torch.Tensor) -> torch.Tensor:
        return extractor(images)[:, :FEW]

    assert frechet_distance(*sets) == pytest.approx(compare_folders(*map(str, folders), feat_model=few, **more), rel=0.01)
    features = [get_folder_features(str(folder), model=few, **more) for folder in folders]
    assert kernel_distance(*sets) == pytest.approx(kernel_distance_of_clean_fid(*features, num_subsets=1, max_subset_size=10), rel=0.01)


def _wrapped(folder: Path) -> torch.nn.Module:
    from cleanfid.inception_torchscript import InceptionV3W

    return InceptionV3W(str(folder), download=False, resize_inside=False)


class _PlainFeatures(CLIPModel):
    """torchmetrics takes features that come alone, as they did before version 5 of transformers."""

    def get_image_features(self, *arguments: object, **more: object) -> torch.Tensor:
        return super().get_image_features(*arguments, **more).pooler_output

    def get_text_features(self, *arguments: object, **more: object) -> torch.Tensor:
        return super().get_text_features(*arguments, **more).pooler_output


def test_clip_score_is_torchmetrics(tmp_path: Path, pictures: Path) -> None:
    folder = miniature.clip(tmp_path / "clip")
    prompts = ["A Cats image in Van Gogh style.", "a fish", "neon"]
    found = load("clip-score", folder).examine(pixels(pictures), prompts)
    reference = CLIPScore(model_name_or_path=lambda: (_PlainFeatures.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)))
    for own, picture, prompt in zip(found, pixels(pictures), prompts, strict=True):
        assert own == pytest.approx(float(reference(picture.permute(2, 0, 1), prompt)), abs=1e-3)
        reference.reset()


def test_qwen_answers_with_its_first_token(tmp_path: Path, pictures: Path) -> None:
    folder = miniature.qwen2_vl(tmp_path / "qwen")
    judge = load("qwen2-vl", folder)
    shown = pixels(pictures)
    found = judge.examine(shown, ["", "", ""])
    model, processor = Qwen2VLForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    for picture, answer in zip(shown.numpy(), found, strict=True):
        inputs = processor(text=[text], images=[Image.fromarray(picture)], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        assert answer == float(logits[yes] > logits[no])
    head = judge.model.lm_head.weight
    with torch.no_grad():
        head[[yes, no]] = head[[no, yes]]
    assert judge.examine(shown, ["", "", ""]) == [1.0 - answer for answer in found]


@pytest.mark.parametrize("kind", ["clip-score", "qwen2-vl", "inception-torchvision", "inception-clean-fid"])
def test_what_is_none_of_them_is_a_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    path.write_bytes(b"<html>")
    with pytest.raises(BenchError, match="fetch it again"):
        load(kind, tmp_path if kind in ("clip-score", "qwen2-vl") else path)
