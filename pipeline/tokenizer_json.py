"""Hugging Face tokenizer.json files: read and checked.

Every file is served by the tokenizers library; byte-level BPE with GPT-2's split rule and Llama's kind of BPE with byte
fallback are served fast. Special tokens are text when they stand in text; other added tokens stay tokens.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.tokenizer_engines import SPACE_MARK, FastEngine, NotServedError, ReferenceEngine, TokenizerFile

_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>")


def read_tokenizer_json(path: Path, data: bytes) -> TokenizerFile:
    """A Hugging Face tokenizer.json; bos and eos from the tokenizer_config.json beside it, or by well-known names."""
    settings = _parse_settings(path, data)
    tokenizer = _open_reference(path, settings)
    bos_text, eos_text = _find_control_tokens(path, settings, tokenizer=tokenizer)
    control_tokens = [token for token in settings["added_tokens"] if token["content"] in (bos_text, eos_text)]
    if not all(token["special"] for token in control_tokens):
        for token in control_tokens:
            token["special"] = True
        tokenizer = _open_reference(path, settings)
    special_texts = [token["content"] for token in settings["added_tokens"] if token["special"]]
    reference = ReferenceEngine(
        encode_text=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode_bytes=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True).encode(),
    )
    return TokenizerFile(
        family="huggingface",
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        bos_id=None if bos_text is None else tokenizer.token_to_id(bos_text),
        eos_id=tokenizer.token_to_id(eos_text),
        document_rule="bos+eos" if bos_text is not None and _begins_with(bos_text, settings) else "eos",
        control_texts=tuple(dict.fromkeys([*special_texts, *filter(None, (bos_text, eos_text))])),
        reference=reference,
        open_fast=lambda: _open_fast_json(settings, reference),
    )


def _parse_settings(path: Path, data: bytes) -> dict[str, Any]:
    try:
        settings = json.loads(data)
    except ValueError:
        raise ValueError(f"{path}: not JSON, or cut short; fetch it again") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
        raise ValueError(f"{path}: JSON, but not a tokenizer.json (it has no model); fetch it again")
    # Sequences for training batches, not for text: padded or cut ids would be wrong here.
    return {**settings, "added_tokens": settings.get("added_tokens") or [], "truncation": None, "padding": None}


def _open_reference(path: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{path}: the tokenizers library refuses it: {error}") from None
    tokenizer.encode_special_tokens = True  # special tokens that stand in text are text
    return tokenizer


def _find_control_tokens(path: Path, settings: dict[str, Any], *, tokenizer: Any) -> tuple[str | None, str]:  # noqa: ANN401
    config_path = path.with_name("tokenizer_config.json")
    config: dict[str, Any] = {}
    if config_path.is_file():
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{config_path}: not JSON; fetch it again, or delete it") from None
        if not isinstance(config, dict):
            raise ValueError(f"{config_path}: not a JSON object; fetch it again, or delete it")
    special = [token["content"] for token in settings["added_tokens"] if token["special"]]
    found = {}
    for key, names in (("bos_token", _BOS_NAMES), ("eos_token", _EOS_NAMES)):
        configured = config.get(key)
        text = configured.get("content") if isinstance(configured, dict) else configured
        candidates = [text] if text is not None else [name for name in names if name in special]
        is_clear = len(candidates) == 1 and tokenizer.token_to_id(candidates[0]) is not None
        found[key] = candidates[0] if is_clear else None
    if found["eos_token"] is None:
        raise ValueError(
            f"{path}: which token ends a text is not clear; name it as eos_token in {config_path.name} beside it "
            f"(special tokens are {', '.join(special) or 'none'})"
        )
    return found["bos_token"], found["eos_token"]


def _begins_with(bos_text: str, settings: dict[str, Any]) -> bool:
    """Whether the file's own template puts the begin-of-text token before a text."""
    processor = settings.get("post_processor") or {}
    processors = processor.get("processors", [processor])
    templates = [each["single"] for each in processors if each.get("type") == "TemplateProcessing"]
    return any(template and template[0].get("SpecialToken", {}).get("id") == bos_text for template in templates)


def _open_fast_json(settings: dict[str, Any], reference: ReferenceEngine) -> FastEngine:
    import gigatoken

    _require_served_json(settings)
    plain_tokens = [token for token in settings["added_tokens"] if not token["special"]]
    lean_json = json.dumps({**settings, "added_tokens": plain_tokens})
    is_byte_level = not settings["model"].get("byte_fallback")
    return FastEngine(lambda: gigatoken.Tokenizer.from_json(lean_json), routed_to=reference if is_byte_level else None)


def _require_served_json(settings: dict[str, Any]) -> None:
    model, splitter, normalizer = settings["model"], settings.get("pre_tokenizer"), settings.get("normalizer")
    plain_tokens = [token for token in settings["added_tokens"] if not token["special"]]
    is_gpt2_split = (splitter or {}).get("type") == "ByteLevel" and splitter.get("use_regex", True)
    is_llama_split = splitter is None or (splitter.get("type") == "Metaspace" and splitter.get("split") is False)
    reasons = {
        "it is not a BPE model": model.get("type") != "BPE",
        "it drops merges at random": bool(model.get("dropout")),
        "it marks the inside of words": bool(
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("ignore_merges")
        ),
        "its split rule is neither GPT-2's nor Llama's": not (
            is_llama_split if model.get("byte_fallback") else is_gpt2_split
        ),
        "it normalises text": not _is_served_normalizer(normalizer, is_llama=bool(model.get("byte_fallback"))),
        "it adds tokens with conditions": any(
            token.get(flag) for token in plain_tokens for flag in ("lstrip", "rstrip", "single_word", "normalized")
        ),
    }
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise NotServedError("; ".join(found))


def _is_served_normalizer(normalizer: dict[str, Any] | None, *, is_llama: bool) -> bool:
    if normalizer is None:
        return True
    steps = normalizer.get("normalizers", [normalizer])
    served = (
        {"type": "Prepend", "prepend": SPACE_MARK},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
    )
    return is_llama and all(step in served for step in steps)
