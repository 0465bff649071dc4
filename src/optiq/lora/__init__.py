"""Adapters on models, quantized or not: trained, written, merged, fused, mounted beside a model."""
