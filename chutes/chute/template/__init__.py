"""Chutes for whole model servers, made by one call."""

from chutes.chute.template.diffusion import build_diffusion_chute
from chutes.chute.template.embedding import build_embedding_chute
from chutes.chute.template.sglang import build_sglang_chute
from chutes.chute.template.vllm import build_vllm_chute

__all__ = ["build_diffusion_chute", "build_embedding_chute", "build_sglang_chute", "build_vllm_chute"]
