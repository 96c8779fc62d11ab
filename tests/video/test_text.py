"""Words and T5, saved and loaded as folders; prompts of released models; mistakes."""

import unicodedata

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from video.text import HiddenStates, Words, load_text
from video.text.labels import Labels


def test_words(tmp_path):
    words = Words(["a", "seven", "moving"], length=4)
    context = words(["A seven,  moving!", ""])
    assert context.shape == (2, 4, 4)
    assert context.argmax(-1).tolist() == [[1, 2, 3, 0], [0, 0, 0, 0]]
    words.save(tmp_path)
    assert torch.equal(load_text(tmp_path)(["a seven moving"]), words(["a seven moving"]))
    with pytest.raises(ValueError, match="the unknown word 'horse'; known are a, seven, moving"):
        words(["a horse moving"])
    with pytest.raises(ValueError, match="has 5 words; at most 4"):
        words(["a a a a a"])
    with pytest.raises(ValueError, match="distinct words"):
        Words(["a", "a"], 3)
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"vocabulary.json is damaged"):
        load_text(tmp_path)


@pytest.mark.parametrize("prompt", ["की", "का", "หมี", "café", "äpfel"])
def test_marks_belong_to_their_letters(prompt):
    """However they are composed, and whatever sign stands beside them."""
    words = Words.of_prompts(["की", "का", "หมี", "café", "äpfel"], 5)
    expected = words.words.index(prompt) + 1
    for form in ("NFC", "NFD"):
        assert words([f"❤\ufe0f {unicodedata.normalize(form, prompt.upper())}!"]).argmax(-1).tolist() == [[expected]]
    assert Labels(["x", unicodedata.normalize("NFD", prompt)])([unicodedata.normalize("NFC", prompt)]).tolist() == [1]


def test_labels_that_are_numbers():
    """A class is told by its name alone, numbers or not."""
    assert Labels(["cat", "dog"])(["cat", "dog", ""]).tolist() == [0, 1, -1]
    assert Labels(["cat", "dog"])([]).dtype == torch.long
    assert Labels(["01", "02", "03"])(["02"]).tolist() == [1]
    for names in (["01", "02", "03"], ["eight", "five", "four"]):
        with pytest.raises(ValueError, match="'1' names no class"):
            Labels(names)(["1"])


def test_t5(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "horse": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=5, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).eval()
    HiddenStates(encoder, fast, length=4).save(tmp_path)
    text = load_text(tmp_path)
    assert (text.length, text.channels) == (4, 8)
    context = text(["a horse", "horse"])
    assert context.shape == (2, 4, 8)
    assert context[0, 2:].abs().max() == 0 and context[1, 1:].abs().max() == 0
    alone = encoder(input_ids=torch.tensor([[3, 4]])).last_hidden_state[0]
    torch.testing.assert_close(context[0, :2], alone, atol=1e-5, rtol=0)
    assert load_text(tmp_path, length=6)(["a"]).shape == (1, 6, 8)
    with pytest.raises(FileNotFoundError, match="no encoder of text"):
        load_text(tmp_path / "none")
