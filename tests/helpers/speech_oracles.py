"""Slow, literal second statements of the speech networks, from the specification alone.

NumPy in float64 with explicit loops over time, taps, heads and pairs. Tensors are [C, T] of one
utterance. `w` maps parameter names (as in the modules' state dicts) to float64 arrays.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def weights(module):
    return {k: v.double().numpy() for k, v in module.state_dict().items()}


def sub(w, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in w.items() if k.startswith(prefix + ".")}


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def relu(x):
    return np.maximum(x, 0)


def leaky(x, slope):
    return np.where(x > 0, x, slope * x)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(w, x):
    """Over channels of [C, T]."""
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        centred = x[:, t] - x[:, t].mean()
        out[:, t] = centred / math.sqrt((centred**2).mean() + 1e-5) * w["weight"] + w["bias"]
    return out


def conv(w, x, *, left=0, right=0, stride=1, dilation=1, groups=1):
    """Taps one by one; weight [Cout, Cin / groups, k]."""
    kernel = w["weight"]
    cout, cin_group, taps = kernel.shape
    num_in = x.shape[1]
    num_out = (num_in + left + right - dilation * (taps - 1) - 1) // stride + 1
    out = np.zeros((cout, num_out))
    for o in range(cout):
        first = o // (cout // groups) * cin_group
        for t in range(num_out):
            total = w["bias"][o] if "bias" in w else 0.0
            for k in range(taps):
                at = t * stride - left + k * dilation
                if 0 <= at < num_in:
                    total += kernel[o, :, k] @ x[first : first + cin_group, at]
            out[o, t] = total
    return out


def same(w, x, **options):
    """Convolution that keeps the length."""
    half = (w["weight"].shape[2] // 2) * options.get("dilation", 1)
    return conv(w, x, left=half, right=half, **options)


def conv_transpose(w, x, stride, padding):
    """Weight [Cin, Cout, k]: input i adds to outputs i·stride - padding + tap."""
    taps = w["weight"].shape[2]
    num_out = (x.shape[1] - 1) * stride - 2 * padding + taps
    out = np.repeat(w["bias"][:, None], num_out, axis=1)
    for i in range(x.shape[1]):
        for k in range(taps):
            at = i * stride - padding + k
            if 0 <= at < num_out:
                out[:, at] += w["weight"][:, :, k].T @ x[:, i]
    return out


# Speech to units.


def slaney_mel(hz):
    return 3 * hz / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)


def slaney_hz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def mel_filters(num_mels, rate, n_fft):
    top = slaney_mel(rate / 2)
    edges = [slaney_hz(i * top / (num_mels + 1)) for i in range(num_mels + 2)]
    matrix = np.zeros((num_mels, n_fft // 2 + 1))
    for m in range(num_mels):
        a, b, c = edges[m : m + 3]
        for k in range(n_fft // 2 + 1):
            f = k * rate / n_fft
            if a <= f <= b:
                matrix[m, k] = (f - a) / (b - a)
            elif b < f <= c:
                matrix[m, k] = (c - f) / (c - b)
        matrix[m] *= 2 / (c - a)
    return matrix


def hann(size):
    return np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / (size - 1)) for n in range(size)])


def log_mel(x, *, num_mels, n_fft=512, window=320, hop=160, pad_to=16, rate=16000):
    """[N] → ([num_mels, T], L), with the DFT written out."""
    num = len(x)
    x = x / (np.abs(x).max() + 1e-5)
    x = np.array([x[0]] + [x[t] - 0.97 * x[t - 1] for t in range(1, num)])
    half = n_fft // 2
    padded = np.array(
        [x[abs(i)] if i < num else x[2 * (num - 1) - i] for i in range(-half, num + half)]
    )
    taper = np.zeros(n_fft)
    taper[(n_fft - window) // 2 : (n_fft - window) // 2 + window] = hann(window)
    angles = 2 * math.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft
    filters = mel_filters(num_mels, rate, n_fft)
    columns = []
    for frame in range(num // hop + 1):
        piece = padded[frame * hop : frame * hop + n_fft] * taper
        power = (np.cos(angles) @ piece) ** 2 + (np.sin(angles) @ piece) ** 2
        columns.append([math.log(v + 2.0**-24) for v in filters @ power])
    values = np.array(columns).T
    length = math.ceil(num / hop)
    out = np.zeros((num_mels, math.ceil(values.shape[1] / pad_to) * pad_to))
    for m in range(num_mels):
        row = values[m, :length]
        mean = sum(row) / length
        std = math.sqrt(sum((v - mean) ** 2 for v in row) / (length - 1))
        out[m, :length] = (row - mean) / (std + 1e-5)
    return out, length


def conv_norm_act(w, x, length, *, stride, has_relu):
    if w["conv.weight"].shape[2] > 1:
        x = x.copy()
        x[:, length:] = 0
        left, right = (1, 2) if stride == 2 else (2, 2)
    else:
        left = right = 0
    y = layer_norm(sub(w, "norm"), conv(sub(w, "conv"), x, left=left, right=right, stride=stride))
    return (relu(y) if has_relu else y), math.ceil(length / stride)


def linear(w, x):
    return w["weight"] @ x + w["bias"][:, None]


def transformer_layer(w, x, length, heads):
    normed = layer_norm(sub(w, "self_attn_layer_norm"), x)
    q, k, v = (linear(sub(w, f"self_attn.{n}_proj"), normed) for n in "qkv")
    size, mixed = x.shape[0] // heads, np.zeros_like(x)
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        for i in range(x.shape[1]):
            scores = np.array([q[rows, i] @ k[rows, j] / math.sqrt(size) for j in range(length)])
            mixed[rows, i] = v[rows, :length] @ softmax(scores)
    x = x + linear(sub(w, "self_attn.out_proj"), mixed)
    hidden = gelu(linear(sub(w, "fc1"), layer_norm(sub(w, "final_layer_norm"), x)))
    return x + linear(sub(w, "fc2"), hidden)


def transformer(w, x, length, *, layers, heads, groups):
    x = x.copy()
    x[:, length:] = 0
    pos = sub(w, "pos_conv")
    half = pos["weight"].shape[2] // 2
    x = x + gelu(conv(pos, x, left=half, right=half, groups=groups)[:, : x.shape[1]])
    for i in range(layers):
        x = transformer_layer(sub(w, f"layers.{i}"), x, length, heads)
    return layer_norm(sub(w, "layer_norm"), x)


def spiral(w, x, length, config):
    """[num_mels, T], L → [width, T / 4], its length."""
    blocks = [sub(w, f"block_modules.{n}") for n in range(7)]
    x, length = conv_norm_act(blocks[0], x, length, stride=2, has_relu=True)
    x, length = conv_norm_act(blocks[1], x, length, stride=2, has_relu=True)
    x, length = conv_norm_act(blocks[2], x, length, stride=1, has_relu=False)
    groups = config.pos_groups
    x = transformer(
        blocks[3], x, length, layers=config.low_layers, heads=config.low_heads, groups=groups
    )
    x, length = conv_norm_act(blocks[4], x, length, stride=1, has_relu=True)
    x, length = conv_norm_act(blocks[5], x, length, stride=1, has_relu=False)
    x = transformer(
        blocks[6], x, length, layers=config.high_layers, heads=config.high_heads, groups=groups
    )
    return x, length


# Units to speech.


def relative_attention(w, x, heads, window):
    q, k, v = (conv(sub(w, f"conv_{n}"), x) for n in "qkv")
    channels, num = x.shape
    size, out = channels // heads, np.zeros_like(x)
    ek, ev = w["emb_rel_k"][0], w["emb_rel_v"][0]
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        for i in range(num):
            scores = np.zeros(num)
            query = q[rows, i] / math.sqrt(size)
            for j in range(num):
                scores[j] = query @ k[rows, j]
                if abs(j - i) <= window:
                    scores[j] += query @ ek[j - i + window]
            p = softmax(scores)
            for j in range(num):
                out[rows, i] += p[j] * v[rows, j]
                if abs(j - i) <= window:
                    out[rows, i] += p[j] * ev[j - i + window]
    return conv(sub(w, "conv_o"), out)


def unit_encoder(w, units, config):
    x = w["emb.weight"][[config.first_symbol + u for u in units]].T * math.sqrt(config.channels)
    for i in range(config.layers):
        attention = relative_attention(
            sub(w, f"encoder.attn_layers.{i}"), x, config.heads, config.window
        )
        x = layer_norm(sub(w, f"encoder.norm_layers_1.{i}"), x + attention)
        ffn = sub(w, f"encoder.ffn_layers.{i}")
        y = same(sub(ffn, "conv_2"), relu(same(sub(ffn, "conv_1"), x)))
        x = layer_norm(sub(w, f"encoder.norm_layers_2.{i}"), x + y)
    both = conv(sub(w, "proj"), x)
    return x, both[: config.channels], both[config.channels :]


def dilated_stack(w, x, layers, kernel, condition=None):
    if condition is not None:
        x = x + condition
    for i in range(layers):
        y = same(sub(w, f"convs_sep.{i}"), x, dilation=kernel**i, groups=x.shape[0])
        y = gelu(layer_norm(sub(w, f"norms_1.{i}"), y))
        y = gelu(layer_norm(sub(w, f"norms_2.{i}"), conv(sub(w, f"convs_1x1.{i}"), y)))
        x = x + y
    return x


def spline_tables(widths, heights, derivatives):
    def knots(logits):
        shares = [1e-3 + 0.99 * p for p in softmax(logits)]
        points = [-5.0]
        for share in shares:
            points.append(points[-1] + 10 * share)
        points[-1] = 5.0
        return points

    slopes = [1.0] + [1e-3 + math.log1p(math.exp(d)) for d in derivatives] + [1.0]
    return knots(widths), knots(heights), slopes


def spline_forward(x, tables):
    """The monotone rational-quadratic spline itself."""
    xs, ys, slopes = tables
    if not -5 <= x <= 5:
        return x
    k = max(i for i in range(10) if x >= xs[i])
    width, height = xs[k + 1] - xs[k], ys[k + 1] - ys[k]
    s, theta = height / width, (x - xs[k]) / width
    inner = theta * (1 - theta)
    return ys[k] + height * (s * theta**2 + slopes[k] * inner) / (
        s + (slopes[k] + slopes[k + 1] - 2 * s) * inner
    )


def spline_inverse(y, tables):
    """By bisection of the forward direction."""
    if not -5 <= y <= 5:
        return y
    low, high = -5.0, 5.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if spline_forward(middle, tables) < y else (low, middle)
    return (low + high) / 2


def duration_predictor(w, hidden, style, noise, config):
    """noise [2, T], already scaled → log-frames [T]."""
    layers, kernel = config.duration_layers, config.duration_kernel
    h = conv(sub(w, "pre"), hidden)
    if style is not None:
        h = h + conv(sub(w, "cond"), style)
    h = conv(sub(w, "proj"), dilated_stack(sub(w, "convs"), h, layers, kernel))
    z = noise
    for number in (7, 5, 3):
        z = z[::-1]
        c = sub(w, f"flows.{number}")
        raw = conv(sub(c, "pre"), z[:1])
        raw = conv(sub(c, "proj"), dilated_stack(sub(c, "convs"), raw, layers, kernel, h))
        scale = 1 / math.sqrt(config.channels)
        second = [
            spline_inverse(
                z[1, t],
                spline_tables(raw[:10, t] * scale, raw[10:20, t] * scale, raw[20:, t]),
            )
            for t in range(z.shape[1])
        ]
        z = np.stack([z[0], np.array(second)])
    z = z[::-1]
    z = (z - w["flows.0.m"]) * np.exp(-w["flows.0.logs"])
    return z[0]


def coupling_shift(w, first, style, config):
    """What a coupling subtracts (inverse) or adds (forward)."""
    channels, layers = config.channels, config.flow_layers
    h = conv(sub(w, "pre"), first)
    skip = np.zeros_like(h)
    cond = None if style is None else conv(sub(w, "enc.cond_layer"), style)
    for i in range(layers):
        u = same(sub(w, f"enc.in_layers.{i}"), h)
        if cond is not None:
            u = u + cond[i * 2 * channels : (i + 1) * 2 * channels]
        act = np.tanh(u[:channels]) * sigmoid(u[channels:])
        r = conv(sub(w, f"enc.res_skip_layers.{i}"), act)
        if i < layers - 1:
            h, skip = h + r[:channels], skip + r[channels:]
        else:
            skip = skip + r
    return conv(sub(w, "post"), skip)


def flow_inverse(w, z, style, config):
    half = config.channels // 2
    for number in (6, 4, 2, 0):
        z = z[::-1]
        shift = coupling_shift(sub(w, f"flows.{number}"), z[:half], style, config)
        z = np.concatenate([z[:half], z[half:] - shift])
    return z


def flow_forward(w, z, style, config):
    half = config.channels // 2
    for number in (0, 2, 4, 6):
        shift = coupling_shift(sub(w, f"flows.{number}"), z[:half], style, config)
        z = np.concatenate([z[:half], z[half:] + shift])[::-1]
    return z


def generator(w, z, style, config):
    x = same(sub(w, "conv_pre"), z)
    if style is not None:
        x = x + conv(sub(w, "cond"), style)
    blocks = len(config.resblock_kernels)
    for i, (rate, kernel) in enumerate(
        zip(config.upsample_rates, config.upsample_kernels, strict=True)
    ):
        x = conv_transpose(sub(w, f"ups.{i}"), leaky(x, 0.1), rate, (kernel - rate) // 2)
        total = 0
        for j in range(blocks):
            y, block = x, sub(w, f"resblocks.{blocks * i + j}")
            for n, dilation in enumerate(config.resblock_dilations):
                inner = same(sub(block, f"convs1.{n}"), leaky(y, 0.1), dilation=dilation)
                y = y + same(sub(block, f"convs2.{n}"), leaky(inner, 0.1))
            total = total + y
        x = total / blocks
    return np.tanh(same(sub(w, "conv_post"), leaky(x, 0.01)))[0]


def units_to_speech(w, units, style, duration_noise, prior_noise_of, config, speed=1.0):
    """The whole path; `prior_noise_of(total)` gives [C, total]. Returns waveform, frames."""
    hidden, mean, log_std = unit_encoder(sub(w, "enc_p"), units, config)
    log_frames = duration_predictor(sub(w, "dp"), hidden, style, duration_noise * 0.8, config)
    frames = [min(max(math.ceil(math.exp(v) / speed), 1), 40) for v in log_frames]
    columns = [t for t, n in enumerate(frames) for _ in range(n)]
    noise = prior_noise_of(len(columns))
    z = mean[:, columns] + noise * np.exp(log_std[:, columns]) * 0.667
    z = flow_inverse(sub(w, "flow"), z, style, config)
    return generator(sub(w, "dec"), z, style, config.generator), frames
