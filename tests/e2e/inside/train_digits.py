"""Makes `templates/digits`: a text-to-image pipeline in diffusers' own format, small enough for a repository.

    python tests/e2e/inside/train_digits.py DIRECTORY

Needs torch, diffusers, transformers and scikit-learn, whose package ships the data: 1,797 handwritten
digits of 8 × 8 pixels (E. Alpaydin and C. Kaynak, UCI "Optical Recognition of Handwritten Digits", CC BY
4.0). Only every second one is learned; the others are for whoever judges what the pipeline draws.

The parts are those of Stable Diffusion 1: a CLIP text encoder, a U-Net over latents, an autoencoder. One
latent stands for one pixel of the data, and the autoencoder makes 128 × 128 pixels of them, the smallest
image that the published schema allows.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate, mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = (
    "{}",
    "the digit {}",
    "a {}",
    "the number {}",
    "a handwritten {}",
    "a drawing of the digit {}",
    "draw a {}",
    "a photo of the number {}",
)
WORDS = sorted({word for phrase in PHRASES for word in phrase.replace("{}", "").split()} | set(NAMES))
PIXELS = 128
WIDTH = 32
"""Of a token's embedding."""
AUTOENCODER_STEPS, AUTOENCODER_BATCH = 400, 8
CROP = 64
"""Pixels of what the autoencoder learns from: as good as whole pictures, and four times as fast."""
STEPS, BATCH = 3000, 32
WITHOUT_PROMPT = 0.1
"""Of all samples: what classifier-free guidance compares with has to be learned too."""


def tokenizer(directory: Path) -> CLIPTokenizer:
    """CLIP's, with one token for each word that is learned; whatever else is spelled letter by letter."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            first = parts[0] + parts[1]
            if (pair := f"{parts[0]} {parts[1]}") not in merges:
                merges.append(pair)
                vocabulary.append(first)
            parts[:2] = [first]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    (directory / "vocab.json").write_text(json.dumps(numbered))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    made = CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=16)
    assert len(made("the digit seven").input_ids) == 5, "a learned word must be one token"
    return made


def images() -> tuple[torch.Tensor, list[int]]:
    """[samples, 3, 128, 128] from -1 to 1, and which digit each shows: every second sample of the data."""
    data = load_digits()
    small = torch.tensor(data.images[::2], dtype=torch.float32)[:, None] / 8 - 1
    large = interpolate(small, size=(PIXELS, PIXELS), mode="bicubic").clamp(-1, 1)
    return large.expand(-1, 3, -1, -1), data.target[::2].tolist()


def crop(pictures: torch.Tensor) -> torch.Tensor:
    """A part of some picture."""
    picture = pictures[random.randrange(len(pictures))]
    top, left = (16 * random.randrange((PIXELS - CROP) // 16 + 1) for _ in range(2))
    return picture[:, top : top + CROP, left : left + CROP]


def train_autoencoder(pictures: torch.Tensor) -> AutoencoderKL:
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(8, 8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
        mid_block_add_attention=False,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=AUTOENCODER_STEPS)
    for step in range(AUTOENCODER_STEPS):
        batch = torch.stack([crop(pictures) for _ in range(AUTOENCODER_BATCH)])
        found = model.encode(batch).latent_dist
        loss = mse_loss(model.decode(found.sample()).sample, batch) + 1e-4 * found.kl().mean() / CROP
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"autoencoder {step}: {loss.item():.4f}", flush=True)
    with torch.no_grad():
        latents = model.encode(pictures[:256]).latent_dist.mean
    model.register_to_config(scaling_factor=1 / latents.std().item())
    return model


def prompt_of(digit: int) -> str:
    if random.random() < WITHOUT_PROMPT:
        return ""
    return random.choice(PHRASES).format(random.choice((NAMES[digit], str(digit))))


def train(
    pictures: torch.Tensor, digits: list[int], words: CLIPTokenizer, vae: AutoencoderKL
) -> tuple[CLIPTextModel, UNet2DConditionModel, DDIMScheduler]:
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=words.model_max_length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 48),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
        latents = latents * vae.config.scaling_factor
    parameters = [*text.parameters(), *unet.parameters()]
    print(f"{sum(p.numel() for p in parameters) + sum(p.numel() for p in vae.parameters()):,} parameters")
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=STEPS)
    for step in range(STEPS):
        chosen = torch.randint(len(latents), (BATCH,))
        tokens = words(
            [prompt_of(digits[index]) for index in chosen.tolist()],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        clean, noise = latents[chosen], torch.randn(BATCH, *latents.shape[1:])
        times = torch.randint(1000, (BATCH,))
        noisy = scheduler.add_noise(clean, noise, times)
        wanted = scheduler.get_velocity(clean, noise, times)
        loss = mse_loss(unet(noisy, times, text(tokens.input_ids).last_hidden_state).sample, wanted)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"diffusion {step}: {loss.item():.4f}", flush=True)
    return text, unet, scheduler


def main(directory: Path) -> None:
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(
        1
    )  # such small convolutions gain nothing from a second thread, and lose from waiting for it
    pictures, digits = images()
    with tempfile.TemporaryDirectory() as place:
        words = tokenizer(Path(place))
    vae = train_autoencoder(pictures)
    text, unet, scheduler = train(pictures, digits, words, vae)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # Half precision loses nothing that could be seen, and is half as large.
    pipeline.to(dtype=torch.float16).save_pretrained(directory)
    print(f"{sum(path.stat().st_size for path in directory.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
