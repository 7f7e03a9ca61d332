/* Binary arithmetic coding with mixed contexts, see mixing.py. */
#ifndef SLFAC_MIXING_H
#define SLFAC_MIXING_H

#include "coding.h"

/* See mixing.py for these. */
enum { MOST_INPUTS = 7, MOST_STRETCH = 3071, ONE_SHIFT = 16, LEARN_SHIFT = 14 };
enum { BIAS = 256, MOST_WEIGHT = 1 << 19, MOST_SEEN = 255, FLUSHED = 3 };
/* Where the tables begin in what mixing.py hands over, and their length in all. */
enum {
    SQUASH = 0,
    STRETCH = SQUASH + 2 * MOST_STRETCH + 1,
    COST = STRETCH + 4096,
    RATE = COST + 4096,
    TRUST = RATE + 256,
    BUCKET = TRUST + 256,
    PRIOR = BUCKET + 1024,
    NUM_ENERGIES = 130,
    NUM_DECISIONS = 18,
    NUM_CHOICES = 2 * NUM_DECISIONS, /* of each quantizer */
    TABLES = PRIOR + NUM_ENERGIES * NUM_CHOICES,
};

typedef struct {
    uint16_t chance, seen; /* of a 1 in 65536ths, and how often it was met */
    int32_t input;         /* what the mixer takes of both */
} Slot;

typedef struct {
    Slot *slots[MOST_INPUTS];
    int32_t *weights[2]; /* those of a first and of a second selection */
    int32_t inputs[MOST_INPUTS + 1], dots[2], chance;
} Mixer;

typedef struct {
    uint32_t low, high, code; /* code: of decoding */
    int64_t at;               /* bytes read, those beyond the end included */
    const uint8_t *data;
    int64_t size;
    Bytes *out; /* NULL where decoded */
    const int32_t *tables;
    const char *wrong;
} Arithmetic;

static inline int32_t limited(int64_t value, int32_t most)
{
    return (int32_t)(value > most ? most : value < -most ? -most : value);
}

static inline int32_t input_of(const Slot *s, const int32_t *tables)
{
    return (tables[STRETCH + (s->chance >> 4)] * tables[TRUST + s->seen]) >> 8;
}

/* The chance of a 1, from the slots and weights that are set. `num` is a constant where
 * this is inlined: loops are unrolled. */
static inline void predict(Mixer *m, const int num, const int32_t *tables)
{
    const int32_t *one = m->weights[0], *other = m->weights[1];
    int64_t first = (int64_t)one[num] * BIAS, second = (int64_t)other[num] * BIAS;
    for (int i = 0; i < num; i++) {
        int32_t x = m->slots[i]->input;
        m->inputs[i] = x;
        first += (int64_t)one[i] * x;
        second += (int64_t)other[i] * x;
    }
    m->inputs[num] = BIAS;
    m->dots[0] = limited(first >> ONE_SHIFT, MOST_STRETCH);
    m->dots[1] = limited(second >> ONE_SHIFT, MOST_STRETCH);
    m->chance = tables[SQUASH + MOST_STRETCH + ((m->dots[0] + m->dots[1]) >> 1)];
}

static inline void learn_weights(int32_t *restrict weights,
                                 const int32_t *restrict inputs, const int num,
                                 int32_t error)
{
    for (int i = 0; i <= num; i++) {
        int32_t change = (inputs[i] * error + (1 << (LEARN_SHIFT - 1))) >> LEARN_SHIFT;
        int32_t weight = weights[i] + change;
        weight = weight > MOST_WEIGHT ? MOST_WEIGHT : weight;
        weights[i] = weight < -MOST_WEIGHT ? -MOST_WEIGHT : weight;
    }
}

/* Learn a bit after `predict`. */
static inline void learn(Mixer *m, const int num, const int32_t *tables, int bit)
{
    for (int j = 0; j < 2; j++) {
        int32_t error = (bit << 16) - tables[SQUASH + MOST_STRETCH + m->dots[j]];
        learn_weights(m->weights[j], m->inputs, num, error);
    }
    int32_t target = bit ? 65535 : 0;
    for (int i = 0; i < num; i++) {
        Slot *s = m->slots[i];
        int64_t change = (int64_t)(target - s->chance) * tables[RATE + s->seen] >> 16;
        s->chance = (uint16_t)(s->chance + change);
        s->seen = (uint16_t)(s->seen + (s->seen < MOST_SEEN));
        s->input = input_of(s, tables);
    }
}

static inline uint32_t next_byte(Arithmetic *c)
{
    if (c->at >= c->size + FLUSHED)
        c->wrong = "the coded levels end early";
    uint32_t byte = c->at < c->size ? c->data[c->at] : 0;
    c->at++;
    return byte;
}

/* Code a bit of a chance, or return the one that was coded. */
static inline int code_bit(Arithmetic *c, int32_t chance, int bit)
{
    uint32_t middle =
        c->low + (uint32_t)((uint64_t)(c->high - c->low) * (uint32_t)chance >> 16);
    if (!c->out)
        bit = c->code <= middle;
    if (bit)
        c->high = middle;
    else
        c->low = middle + 1;
    while (!((c->low ^ c->high) >> 24)) {
        if (c->out) {
            uint8_t *byte = extend(c->out, 1);
            if (byte)
                *byte = (uint8_t)(c->high >> 24);
            else
                c->wrong = no_memory;
        } else {
            c->code = c->code << 8 | next_byte(c);
        }
        c->low <<= 8;
        c->high = c->high << 8 | 255;
    }
    return bit;
}

static inline int code_mixed(Arithmetic *c, Mixer *m, const int num, int bit)
{
    predict(m, num, c->tables);
    bit = code_bit(c, m->chance, bit);
    learn(m, num, c->tables, bit);
    return bit;
}

/* Bits as they are, the highest first. */
static inline uint64_t code_raw(Arithmetic *c, int num, uint64_t bits)
{
    uint64_t coded = 0;
    while (num--)
        coded = coded << 1 | (uint64_t)code_bit(c, 32768, (int)(bits >> num & 1));
    return coded;
}

static inline void start_weights(int32_t *weights, Py_ssize_t sets, int num, int32_t each)
{
    for (Py_ssize_t i = 0; i < sets; i++)
        for (int j = 0; j <= num; j++)
            *weights++ = j < num ? each : 0;
}

static inline void start_slots(Slot *slots, Py_ssize_t num)
{
    for (Py_ssize_t i = 0; i < num; i++)
        slots[i] = (Slot){32768, 0, 0};
}

#endif
