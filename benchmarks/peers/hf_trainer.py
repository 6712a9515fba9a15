"""Hugging Face: ``Trainer`` around a timm network, with its guide on image classification.

RandomResizedCrop, AdamW at 5e-5 with a tenth of warm-up, batches of 32; every epoch is evaluated
and saved, and the best one is kept.

Source: https://huggingface.co/docs/transformers/tasks/image_classification
"""

import torch
from record import Record, parse
from torchvision import datasets, transforms
from transformers import TimmWrapperForImageClassification, Trainer, TrainingArguments, set_seed

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
END = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
TRANSFORMS = {
    "train": [transforms.RandomResizedCrop(224), *END],
    "val": [transforms.Resize(256), transforms.CenterCrop(224), *END],
}


def collate(examples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Make a batch by the names that the model takes."""
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def main() -> None:
    """Train and report."""
    arguments = parse(__doc__)
    set_seed(arguments.seed)
    record = Record(keeps="best")
    images = {
        split: datasets.ImageFolder(str(arguments.folder / split), transforms.Compose(steps))
        for split, steps in TRANSFORMS.items()
    }
    model = TimmWrapperForImageClassification.from_pretrained(
        arguments.weights,
        num_labels=len(images["train"].classes),
        ignore_mismatched_sizes=True,
    )

    def scores(prediction: tuple) -> dict[str, float]:
        logits, labels = prediction
        record.add(labels.tolist(), logits.argmax(axis=1).tolist())
        return {"accuracy": record.rows[-1]["accuracy"]}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="trained",
            remove_unused_columns=False,
            eval_strategy="epoch",
            save_strategy="epoch",
            learning_rate=5e-5,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            num_train_epochs=arguments.epochs,
            warmup_steps=0.1,
            logging_steps=10,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
            seed=arguments.seed,
        ),
        data_collator=collate,
        train_dataset=images["train"],
        eval_dataset=images["val"],
        compute_metrics=scores,
    )
    trainer.train()
    record.print()


if __name__ == "__main__":
    main()
