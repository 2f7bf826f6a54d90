"""Pipelines of diffusers with tiny random networks, stored in folders as a published model is."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULE |= {"timestep_spacing": "leading"}


def tokenizer() -> Any:
    """CLIP's tokenizer with letters for tokens; `cat` is a token, too."""
    letters = [*string.ascii_lowercase, *string.digits, *",.-"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>", "ca", "cat</w>"]
    merges = [("c", "a"), ("ca", "t</w>")]
    return transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, merges, model_max_length=77)


def clip(width: int = 32, projected: bool = False) -> Any:
    """CLIP's text encoder."""
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=width, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=width, bos_token_id=78, eos_token_id=79, pad_token_id=79,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5(width: int = 32) -> tuple[Any, Any]:
    """T5's tokenizer, with letters for tokens, and encoder."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in string.ascii_lowercase)]
    config = transformers.T5Config(
        vocab_size=160, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return transformers.T5Tokenizer(words, model_max_length=512), transformers.T5EncoderModel(config)


def vae(latents: int = 4, **more: Any) -> Any:
    """An autoencoder that halves the side three times."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), in_channels=3, out_channels=3, latent_channels=latents, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, **more,
    )  # fmt: skip


def unet(width: int, **more: Any) -> Any:
    """A U-Net with attention to a text of this width."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, attention_head_dim=(2, 4), **more,
    )  # fmt: skip


def sd(prediction: str = "epsilon") -> Any:
    """Stable Diffusion 1 (noise prediction) or 2 (v_prediction)."""
    scheduler = diffusers.PNDMScheduler(**SCHEDULE, prediction_type=prediction, skip_prk_steps=True)
    return diffusers.StableDiffusionPipeline(
        vae(), clip(), tokenizer(), unet(32), scheduler, None, None, requires_safety_checker=False
    )


def sdxl() -> Any:
    """Stable Diffusion XL."""
    net = unet(
        64, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae(), clip(), clip(projected=True), tokenizer(), tokenizer(), net, diffusers.EulerDiscreteScheduler(**SCHEDULE)
    )


def sd3() -> Any:
    """Stable Diffusion 3."""
    words, encoder = t5()
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        net, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.06), clip(16, projected=True),
        tokenizer(), clip(16, projected=True), tokenizer(), encoder, words,
    )  # fmt: skip


def flux() -> Any:
    """FLUX.1-dev."""
    words, encoder = t5()
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae(shift_factor=0.06), clip(),
        tokenizer(), encoder, words, net,
    )  # fmt: skip


def dit() -> Any:
    """DiT with categories."""
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", activation_fn="gelu-approximate",
    )  # fmt: skip
    return diffusers.DiTPipeline(net, vae(), diffusers.DDIMScheduler())


KINDS = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "dit": dit}


def stored(folder: Path, kind: str, *arguments: Any) -> Path:
    """A folder with a tiny pipeline whose weights are a function of its kind."""
    torch.manual_seed(0)
    pipeline = KINDS[kind](*arguments)
    for name in ("unet", "transformer"):
        net = getattr(pipeline, name, None)
        if net is not None:
            for parameter in net.parameters():  # some layers begin with zeros, which would hide mistakes
                parameter.data += 0.02 * torch.randn_like(parameter)
    pipeline.save_pretrained(folder, safe_serialization=True)
    if kind == "dit":  # published folders name the categories, which diffusers does not store
        index = json.loads((folder / "model_index.json").read_text())
        index["id2label"] = {str(i): f"category {i}, number {i}" for i in range(1000)}
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder
