"""Tiny models of transformers' and PyTorch's own kinds, with random weights: nothing is downloaded."""

import torch
import transformers as tf

VOCABULARY, LENGTH, CLASSES = 23, 6, 3


def bert():
    config = tf.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=CLASSES,
    )
    return made(tf.BertForSequenceClassification, config)


def gpt2():
    config = tf.GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return made(tf.GPT2LMHeadModel, config)


def llama():
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return made(tf.LlamaForCausalLM, config)


def mixtral():
    config = tf.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return made(tf.MixtralForCausalLM, config)


def vit():
    config = tf.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
    )
    return made(tf.ViTForImageClassification, config)


def convolutional():
    torch.manual_seed(0)
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, groups=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, CLASSES),
    )
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module.eval()


def made(kind, config):
    torch.manual_seed(0)
    module = kind(config)
    for parameter in module.parameters():  # as initialised, biases are zero and scales one
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def adapted(seed=0):
    """BERT with adapters on queries and values, and a head that is trained with them."""
    import peft

    settings = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], "lora_dropout": 0.1}
    model = peft.get_peft_model(bert(), peft.LoraConfig(r=2, lora_alpha=4, **settings))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def text(count=4, seed=0):
    """`input_ids` and `attention_mask`, padded on the right."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (count, LENGTH), generator=random)
    lengths = torch.randint(3, LENGTH + 1, (count, 1), generator=random)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def images(channels, count=4, seed=0):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
