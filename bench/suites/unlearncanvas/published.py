"""What is published of UnlearnCanvas and of the methods measured on it, and where."""

from __future__ import annotations

from pathlib import Path

from bench.assets import Asset, Source
from bench.errors import BenchError
from bench.suites.suite import Tuned
from bench.suites.unlearncanvas.vocabulary import OBJECTS

_LICENCE_DRIVE = "not stated (Stable Diffusion: CreativeML Open RAIL-M)"


def _asset(name: str, what: str, source: Source, licence: str, size: str, place: str, *parts: str, **more: object) -> Asset:
    return Asset("unlearncanvas", name, what, source, licence, size, place, parts, **more)  # type: ignore[arg-type]


ASSETS = {
    asset.name: asset
    for asset in (
        _asset(
            "model", "Stable Diffusion 1.5 fine-tuned on UnlearnCanvas, a diffusers folder (or a CompVis checkpoint)",
            Source(drive="18tN-7LuxQ89I-MDSjtB5to2dGHDMHyqb"), _LICENCE_DRIVE, "about 4 GB", "model",
            "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model*", "vae/config.json", "vae/diffusion_pytorch_model*",
            "text_encoder/config.json", "text_encoder/*model*", "tokenizer/*", "scheduler/scheduler_config.json",
        ),
        _asset(
            "classifiers", "the style classifier style50.pth and the object classifier style50_cls.pth",
            Source(drive="1AoazlvDgWgc3bAyHDpqlafqltmn4vm61"), _LICENCE_DRIVE, "2 × 1.2 GB", "classifiers",
            "style50.pth", "style50_cls.pth",
        ),
        _asset(
            "saes", "the sparse autoencoders of SAeUron", Source(hub="bcywinski/SAeUron", patterns=("unet.*/*",)), "Apache-2.0",
            "2 × 0.21 GB", "saes", *(f"unet.up_blocks.1.attentions.{k}/{name}" for k in (1, 2) for name in ("cfg.json", "sae.safetensors")),
            needed_for="saeuron, saeuron-detect", usual=True,
        ),
        _asset(
            "saes-coco", "the sparse autoencoder of SAeUron for Stable Diffusion 1.4 (nudity)",
            Source(hub="bcywinski/SAeUron_coco", patterns=("unet.*/*",)), "Apache-2.0", "0.21 GB", "saes-coco",
            "unet.up_blocks.1.attentions.1/cfg.json", "unet.up_blocks.1.attentions.1/sae.safetensors",
            needed_for="--set saeuron.sae=FOLDER on another model",
        ),
        _asset(
            "saes-sdxl-turbo", "the sparse autoencoders of arXiv:2410.22366 for SDXL-Turbo", Source(hub="surokpro2/sdxl-saes"),
            "not stated", "4 × 0.05 GB", "saes-sdxl-turbo", "*", needed_for="a suite of one's own on SDXL-Turbo (docs/suites.md)",
        ),
        _asset(
            "saemnesia", "the supervised sparse autoencoder of SAEmnesia, for objects",
            Source(hub="leno3003/SAEmnesia", patterns=("cfg.json", "sae.safetensors")), "MIT", "0.21 GB",
            "saemnesia/unet.up_blocks.1.attentions.1", "cfg.json", "sae.safetensors", needed_for="--set saeuron.sae=FOLDER/saemnesia",
        ),
        _asset(
            "class-params", "percentile and multiplier for each object, class_params.pth, from the folder that SAEmnesia's release names",
            Source(drive="1NoFDrjJ3dYmadufV2pK203ZED2pZ_hsB"), "not stated", "a few kB, in a folder of 6.6 GB",
            "class-params", "class_params.pth",
            needed_for="tuned rows of saeuron on objects; for which SAE they were searched is not stated",
        ),
        _asset(
            "object-latents", "latents of the anchor prompts by object, cls_latents_dict_*.pkl, of whichever SAE the folder's authors used",
            Source(drive="1NoFDrjJ3dYmadufV2pK203ZED2pZ_hsB"), "not stated", "6.6 GB", "object-latents", "cls_latents_dict_*.pkl",
            needed_for="latents chosen from the authors' own pictures; else they are sampled",
        ),
        _asset(
            "style-latents", "SAeUron's latents of the anchor prompts by style, style_latents_dict_*.pkl",
            Source(url="https://github.com/cywinski/SAeUron"), "not published: its script gather_sae_acts_ca_prompts.py makes it", "4.1 GB",
            "style-latents", "style_latents_dict_*.pkl", needed_for="latents chosen from the authors' own pictures; else they are sampled",
        ),
        _asset(
            "anchor-prompts", "the anchor prompts of concept ablation, sd_prompt_{Object}.txt",
            Source(url="https://github.com/OPTML-Group/UnlearnCanvas"), "not stated", "77 kB", "anchor-prompts",
            *(f"sd_prompt_{obj}.txt" for obj in OBJECTS), needed_for="latents chosen as published; else from the project's own sentences",
        ),
        _asset(
            "clip", "CLIP ViT-L/14", Source(hub="openai/clip-vit-large-patch14", patterns=("*.json", "*.txt", "*.safetensors")), "MIT",
            "1.7 GB", "clip", "config.json", "*processor_config.json", "*.safetensors", needed_for="--examine clip-score",
        ),
        _asset(
            "qwen2-vl", "Qwen2-VL 7B Instruct", Source(hub="Qwen/Qwen2-VL-7B-Instruct"), "Apache-2.0", "16.6 GB", "qwen2-vl",
            "config.json", "*processor_config.json", "*.safetensors", needed_for="--examine qwen2-vl",
        ),
        _asset(
            "images", "the pictures of UnlearnCanvas, as folders Style/Object/1.jpg … 20.jpg or as the Hub's Parquet files",
            Source(hub="datasets/OPTML-Group/UnlearnCanvas", patterns=("*.parquet", "**/*.parquet")), "MIT", "about 76 GB", "images",
            "*", needed_for="FID and KID", many=True,
        ),
        _asset(
            "inception-torchvision", "torchvision's Inception v3 for fid-unlearncanvas",
            Source(url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"), "BSD-3-Clause", "104 MB",
            "inception_v3_google-0cc3c7bd.pth", needed_for="fid-unlearncanvas",
            sha256="0cc3c7bd",
        ),
        _asset(
            "inception-clean-fid", "the Inception network of clean-fid, TorchScript",
            Source(url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"),
            "not stated", "96 MB", "inception-2015-12-05.pt", needed_for="FID and KID",
            sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        ),
    )
}  # fmt: skip
"""By name."""


def published_parameters(path: Path) -> Tuned:
    """`class_params.pth`: SAeUron's percentile and multiplier by object, chosen among 21 settings by the classifiers that evaluate.

    BenchError for anything else; nothing in the file is run.
    """
    from bench.unpickle import load_torch

    try:
        body = load_torch(path)
        found = {
            f"object:{name}": {"percentile": float(body[name]["percentile"]), "multiplier": float(body[name]["multiplier"])}
            for name in OBJECTS if name in body
        }  # fmt: skip
        if not found:
            raise ValueError("it names none of the objects")
    except Exception as error:  # torch raises pickle's, zipfile's and its own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(f"{path} does not hold SAeUron's parameters by object ({first}): give another file.") from error
    return Tuned({"published": path.name, "on": "evaluation", "settings": 21, "pictures": 21 * 980}, found)
