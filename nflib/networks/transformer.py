"""The causal transformer that gives an autoregressive map its parameters."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nflib.networks.cache import KeyValueCache, padded_causal_mask
from nflib.networks.step import Step


class Positions(Protocol):
    """What gives the vectors ``(stop - start, channels)`` that are added to the tokens ``start … stop - 1``."""

    def __call__(self, start: int, stop: int) -> Tensor: ...


class TokenFeatures(Protocol):
    """Features of the tokens before each position, for what a network of few layers would not find by itself.

    Args:
        previous: the tokens read, those before each of the positions ``start … start + L - 1`` (at start 0 the first
            has none before it: L - 1 tokens).
        start: the first position.
        memory: what `new_memory` made, which takes in the tokens read; None where they are the whole sequence.
        encoded_context: what `encode_context` made.

    Returns:
        ``(B, L, channels)``, for each position a function of the tokens before it.
    """

    def encode_context(self, context: Any) -> Any:
        """Encode the context, once a call of the network."""
        ...

    def new_memory(self, batch_size: int, num_tokens: int) -> Tensor:
        """An empty memory, ``(B, ...)``, of what is known of earlier tokens while decoding."""
        ...

    def __call__(self, previous: Tensor, start: int, memory: Tensor | None, encoded_context: Any) -> Tensor: ...


class EncodedContext(NamedTuple):
    """A context, encoded once for all steps of a call; each part is None where the network does not use it.

    Attributes:
        added: added to every token, ``(B or 1, 1 or T, channels)``.
        condition: of each token read, for the norms, ``(B or 1, T, c)``.
        prefix: tokens read before all others, ``(B or 1, P, channels)``.
        prefix_mask: padding mask of the prefix, ``(B, P)``, False at padding.
        token_mask: padding mask of the tokens, ``(B, T)``, False at padding, whose parameters are zero.
        temperature: of each sample's attention, ``(B, 1, 1, 1)``.
        features: what `TokenFeatures.encode_context` made.
    """

    added: Tensor | None = None
    condition: Tensor | None = None
    prefix: Tensor | None = None
    prefix_mask: Tensor | None = None
    token_mask: Tensor | None = None
    temperature: Tensor | None = None
    features: Any = None

    @property
    def prefix_length(self) -> int:
        """How many tokens the prefix has, padding too; 0 without one."""
        return 0 if self.prefix is None else self.prefix.shape[1]


class CausalTransformer(nn.Module):
    """Transformer that maps tokens ``(B, T, in_channels)`` to parameters ``(B, T, out_channels)``, strictly causally.

    Parameters t are a function of the tokens before t (and of the context). Without a start token the network reads
    tokens 0 … T-2, and the first token's parameters are zero. `forward` computes all positions at once, or those that
    follow a prefix held in a cache, with the same numbers. The output layer starts at zero, so that a new flow is the
    identity. The modules that read the context are each None where it is not used so.

    Args:
        in_channels: numbers that are read of each token.
        out_channels: parameters of each token.
        channels: width of the layers.
        layers: modules called with ``(x, step, index)`` that hold their self-attention as `attention`.
        positions: gives the position vectors that are added to the tokens (None with rotary layers).
        embedding: makes of the context what is added to every token, ``(B, 1 or T, channels)``.
        conditioner: makes a condition of each token read, ``(B, T, c)``, for the layers' norms.
        prefix: makes tokens ``(B, P, channels)`` that stand before all others, which see them; its method `valid`, if
            it has one, says which are no padding, ``(B, P)``.
        token_mask: makes the mask ``(B, T)``, False at padding, whose parameters are zero. Padding must come last.
        features: makes, of context and tokens, a vector that is added to each token read (`TokenFeatures`).
        final_norm: norm before the output layer (default: none).
        clip: applied to the parameters, such as `SoftClip` (default: none).
        start_token: whether a learned vector is read before token 0.

    >>> from nflib.networks import transformer_layers
    >>> layers = transformer_layers(1, 32, head_dim=16)
    >>> network = CausalTransformer(2, 4, 32, layers)
    >>> network(torch.randn(5, 6, 2)).shape
    torch.Size([5, 6, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        layers: list[Any],
        *,
        positions: nn.Module | None = None,
        embedding: nn.Module | None = None,
        conditioner: nn.Module | None = None,
        prefix: nn.Module | None = None,
        token_mask: nn.Module | None = None,
        features: nn.Module | None = None,
        final_norm: nn.Module | None = None,
        clip: nn.Module | None = None,
        start_token: bool = False,
    ):
        super().__init__()
        self.out_channels = out_channels
        self._cache_heads = (layers[0].attention.num_key_value_heads, layers[0].attention.head_dim)
        self.start_token = nn.Parameter(torch.randn(in_channels)) if start_token else None
        self.proj_in = nn.Linear(in_channels, channels)
        self.positions = positions
        self.embedding = embedding
        self.conditioner = conditioner
        self.prefix = prefix
        self.token_mask = token_mask
        self.features: Any = features
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm or nn.Identity()
        self.proj_out = nn.Linear(channels, out_channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.clip = clip or nn.Identity()

    @property
    def num_start_tokens(self) -> int:
        """How many positions the network reads before token 0: one with a learned start, else none."""
        return 0 if self.start_token is None else 1

    @property
    def uses_context(self) -> bool:
        """Whether any part of the network reads the context."""
        parts = (self.embedding, self.conditioner, self.prefix, self.token_mask, self.features)
        return any(part is not None for part in parts)

    def encode_context(self, context: Any) -> EncodedContext:
        """Encode a context as `forward` takes it, once for all calls that follow.

        Raises ValueError where the network needs a context and there is none.
        """
        needed = {
            "conditions": self.conditioner,
            "a prefix": self.prefix,
            "a padding mask": self.token_mask,
            "features": self.features,
        }
        for name, part in needed.items():
            if part is not None and context is None:
                raise ValueError(
                    f"this network takes {name} from its context; pass the flow one, or bind one by given()."
                )
        valid = getattr(self.prefix, "valid", None)
        return EncodedContext(
            None if self.embedding is None else self.embedding(context),
            None if self.conditioner is None else self.conditioner(context),
            None if self.prefix is None else self.prefix(context),
            None if valid is None else valid(context),
            None if self.token_mask is None else self.token_mask(context),
            features=None if self.features is None else self.features.encode_context(context),
        )

    def forward(
        self,
        tokens: Tensor,
        encoded_context: EncodedContext | None = None,
        cache: KeyValueCache | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Parameters of the tokens ``start … stop - 1``, by default of all.

        Args:
            tokens: ``(B, T, in_channels)``, of which those before ``stop - 1`` are read.
            encoded_context: what `encode_context` made (default: of no context).
            cache: from start 1 on it holds the keys and values of all that came before ``start - 1``, and takes in the
                new ones.
            start: the first token.
            stop: one beyond the last token (default: T).

        Returns:
            ``(B, stop - start, out_channels)``.
        """
        stop = tokens.shape[1] if stop is None else stop
        encoded = self.encode_context(None) if encoded_context is None else encoded_context
        previous = tokens[:, max(start - 1, 0) : max(stop - 1, 0)]
        read = previous
        if self.proj_in.weight.dtype.itemsize < 4:
            read = read.to(self.proj_in.weight.dtype)  # tokens stay in float32 around a network in half precision
        if start == 0 and self.start_token is not None:
            read = torch.cat([self.start_token.to(read.dtype).expand(read.shape[0], 1, -1), read], dim=1)
        if read.shape[1] == 0:
            return read.new_zeros(tokens.shape[0], stop - start, self.out_channels)
        first = max(start - 1 + self.num_start_tokens, 0)
        features = None
        if self.features is not None:
            features = self.features(previous, start, None if cache is None else cache.memory, encoded.features)
            features = features[:, -read.shape[1] :]
        parameters = self._read(read, first, cache, encoded, features)
        if start == 0 and self.start_token is None:
            parameters = nn.functional.pad(parameters, (0, 0, 1, 0))
        if encoded.token_mask is not None:
            parameters = parameters.masked_fill(~encoded.token_mask[:, start:stop, None], 0.0)
        return parameters

    def _read(
        self, read: Tensor, first: int, cache: KeyValueCache | None, encoded: EncodedContext, features: Tensor | None
    ) -> Tensor:
        last = first + read.shape[1]
        x = self.proj_in(read)
        if features is not None:
            x = x + features.to(x.dtype)
        if self.positions is not None:
            x = x + self.positions(first, last)
        if encoded.added is not None:
            x = x + encoded.added
        condition = None if encoded.condition is None else encoded.condition[:, first:last]
        place = first + encoded.prefix_length
        if encoded.prefix is not None and first == 0:
            x = torch.cat([encoded.prefix.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
            place = 0
        new, total = x.shape[1], place + x.shape[1]
        if encoded.prefix_mask is not None:
            mask: Tensor | None = padded_causal_mask(new, total, encoded.prefix_mask, x)
        else:
            mask = None if cache is None else cache.mask(new, total)
        step = Step(place, cache, condition, encoded.temperature, mask)
        for index, layer in enumerate(self.layers):
            x = layer(x, step, index)
        return self.clip(self.proj_out(self.final_norm(x[:, -read.shape[1] :])))

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: EncodedContext) -> KeyValueCache:
        """An empty cache for decoding.

        Args:
            batch_size: samples decoded at once.
            num_tokens: tokens to decode; the last one is never read.
            encoded_context: what `encode_context` made.
        """
        num_heads, head_dim = self._cache_heads
        weight = self.proj_in.weight
        autocast = torch.is_autocast_enabled(weight.device.type)
        return KeyValueCache(
            len(self.layers),
            batch_size,
            num_heads,
            encoded_context.prefix_length + self.num_start_tokens + num_tokens - 1,
            head_dim,
            dtype=torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype,
            device=weight.device,
            memory=None if self.features is None else self.features.new_memory(batch_size, num_tokens),
        )
