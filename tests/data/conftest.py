"""Tiny tokenizers of the kinds that differ in what they do at the start, at the boundary and at the end of a text.

Must not know: models, adapters.
"""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Answer: yes or no? The answer: yes. Answer: no",
    "the cat sat on the mat and the dog sat on the log",
    "hello world hello there general kenobi",
    "Below is an instruction that describes a task.\n\n### Instruction:\nsay hello\n\n### Response:hello",
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n\n\nyes<|im_end|>\n",
    "aaa aab aba abb bab ab ab abc abc a b c",
] * 4

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _byte_bpe(*, use_regex: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that also merges over spaces and line ends: nearly every boundary has a token astride it."""
    return PreTrainedTokenizerFast(tokenizer_object=_byte_bpe(use_regex=False), eos_token="</s>", pad_token="<pad>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Adds BOS by itself, and has a chat template that writes BOS as well."""
    tokenizer = _byte_bpe(use_regex=True)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing("<s> $A", None, [("<s>", bos)])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", add_bos_token=True
    )
    fast.chat_template = CHATML
    return fast


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As sentencepiece: a space before every text, here and there made visible."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", tokenizer.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    frame = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return bpe_tokenizer()


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="session")
def shared_chat() -> PreTrainedTokenizerFast:
    return chat_tokenizer()


@pytest.fixture
def chat() -> PreTrainedTokenizerFast:
    """Built anew for each test: tests change its template."""
    return chat_tokenizer()


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    return metaspace_tokenizer()


@pytest.fixture(scope="session")
def bert() -> PreTrainedTokenizerFast:
    return bert_tokenizer()
