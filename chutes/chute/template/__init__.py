"""Chutes for whole model servers, made by one call."""

from chutes.chute.template.embedding import build_embedding_chute
from chutes.chute.template.sglang import build_sglang_chute
from chutes.chute.template.vllm import build_vllm_chute

__all__ = ["build_embedding_chute", "build_sglang_chute", "build_vllm_chute"]
