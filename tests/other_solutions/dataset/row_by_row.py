"""Rows are filled token by token; packing keeps how much room each row has."""

import torch

from minillava.inputs.conversation import IGNORE


def pad(rows, value):
    longest = max([len(row) for row in rows] or [1])
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64).view(-1, longest)


def pad_rows(rows, pad_id):
    rows = list(rows)
    return {"input_ids": pad([ids for ids, _ in rows], pad_id), "labels": pad([labels for _, labels in rows], IGNORE)}


def share_rows(lengths):
    rows, room = [], []
    for length, index in sorted(zip(lengths, range(len(lengths))), key=lambda pair: (-pair[0], pair[1])):
        for place, left in enumerate(room):
            if length <= left:
                rows[place].append(index)
                room[place] -= length
                break
        else:
            rows.append([index])
            room.append(max(lengths) - length)
    return rows


class ConversationDataset:
    def collate_packed(self, examples):
        rows, masks, order = [], [], []
        for group in share_rows([len(example["input_ids"]) for example in examples]):
            ids, labels, mask = [], [], []
            for number, index in enumerate(group):
                example = examples[index]
                order.append(example)
                ids += example["input_ids"]
                labels += [IGNORE, *example["labels"][1:]]
                mask += [number + 1] * len(example["input_ids"])
            rows.append((ids, labels))
            masks.append(mask)
        batch = self.collate(order)
        batch.update(self._padded(rows))
        batch["attention_mask"] = pad(masks, 0)
        return batch
