"""SentencePiece vocabularies: trained on a text, or read from a file."""

import io
import pathlib
from collections.abc import Iterable

from proxies_lib.config import refuse
from proxies_lib.prepared import MAX_PIECES

LONGEST = 4192 // 4  # characters: SentencePiece drops lines above 4192 bytes, without a word


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE vocabulary (pad 0, eos 1, bos 2, unk 3) that keeps breaks and indents.

    BPE on one thread: its counts are integers, so the same text gives the same vocabulary
    everywhere. Raises UserError where the text has too few pieces.
    """
    import sentencepiece

    model = io.BytesIO()  # a file's name would become part of the model, and of its checksum
    lines = []
    for text in texts:
        for line in text.splitlines():
            if line.strip():
                lines += cut(line)
    stride = max(1, len(lines) // 100_000)  # that many lines are enough for its counts
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines[::stride]),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            character_coverage=0.9995,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).split("] ")[-1].strip() or "it finds nothing to count in it"
        refuse("vocab_size", vocab_size, f"SentencePiece cannot train on this text ({reason})")
    return model.getvalue()


def cut(line: str) -> list[str]:
    """`line`, cut where SentencePiece would drop it."""
    if len(line) <= LONGEST:
        return [line]
    return [line[i : i + LONGEST] for i in range(0, len(line), LONGEST)]


def read_tokenizer(path: str, vocab_size: int | None) -> bytes:
    """A SentencePiece model that can end documents, of `vocab_size` pieces if that is given."""
    try:
        model = pathlib.Path(path).read_bytes()
    except OSError as error:
        refuse("tokenizer", path, f"cannot be read ({error.strerror})")
    processor = processor_of(model)
    if processor is None:
        refuse("tokenizer", path, "is not a SentencePiece model")
    pieces = len(processor)
    if pieces > MAX_PIECES:
        refuse("tokenizer", path, f"has {pieces} pieces; at most {MAX_PIECES} fit uint16")
    if processor.eos_id() < 0:
        refuse("tokenizer", path, "has no end-of-sentence piece, which ends each document")
    if vocab_size not in (None, pieces):
        refuse("vocab_size", vocab_size, f"the tokenizer has {pieces} pieces")
    return model


def processor_of(model: bytes):
    """The SentencePiece processor of a model, None where it is none."""
    import sentencepiece

    if not model:  # which SentencePiece takes for no argument
        return None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        return None
