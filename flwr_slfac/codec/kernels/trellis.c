/* Levels by trellis-coded quantization, coded with mixed contexts. The reference is in
 * mixing.py, contexts.py and trellis.py. */
#include "mixing.h"

#include <math.h>
#include <stdlib.h>

/* ------------------------------------------------------------------ lists */

/* See mixing.py for these. */
enum { LIST_BUCKETS = 14, LIST_DECISIONS = 48, MOST_EXPONENT = 40 };
enum { SIGN_DECISION = 1, EXPONENT_DECISION = 2, MANTISSA_DECISION = 24, LAST_OWN = 20 };

typedef struct {
    Slot shared[LIST_BUCKETS * LIST_DECISIONS], own[LIST_DECISIONS];
    int32_t weights[2][LIST_DECISIONS * 3];
} ListModel;

static void start_lists(ListModel *m)
{
    start_slots(m->shared, LIST_BUCKETS * LIST_DECISIONS);
    for (int j = 0; j < 2; j++)
        start_weights(m->weights[j], LIST_DECISIONS, 2, 32768);
}

static int list_bit(Arithmetic *c, ListModel *m, int bucket, int decision, int bit)
{
    Mixer mixer = {.slots = {m->shared + bucket * LIST_DECISIONS + decision,
                             m->own + decision},
                   .weights = {m->weights[0] + decision * 3,
                               m->weights[1] + decision * 3}};
    return code_mixed(c, &mixer, 2, bit);
}

static int64_t list_magnitude(Arithmetic *c, ListModel *m, int bucket, int64_t value)
{
    int exponent = 0;
    while (list_bit(c, m, bucket,
                    EXPONENT_DECISION + (exponent < LAST_OWN ? exponent : LAST_OWN),
                    exponent < MOST_EXPONENT && value >> (exponent + 1) > 0))
        if (++exponent > MOST_EXPONENT) {
            c->wrong = "an integer of more than 40 bits";
            return 1;
        }
    if (!exponent)
        return 1;
    int top = list_bit(c, m, bucket,
                       MANTISSA_DECISION + (exponent < LAST_OWN ? exponent : LAST_OWN),
                       (int)(value >> (exponent - 1) & 1));
    uint64_t rest = code_raw(c, exponent - 1, (uint64_t)value);
    return (int64_t)1 << exponent | (int64_t)top << (exponent - 1) | (int64_t)rest;
}

static void code_list(Arithmetic *c, ListModel *m, int64_t *values, Py_ssize_t num)
{
    const int32_t *buckets = c->tables + BUCKET;
    int64_t before = 0, last = 0;
    start_slots(m->own, LIST_DECISIONS);
    for (Py_ssize_t i = 0; i < num && !c->wrong; i++) {
        int64_t sum = 4 * (2 * last + before);
        int bucket = buckets[sum < 1023 ? sum : 1023];
        int64_t value = c->out ? values[i] : 0, size = value < 0 ? -value : value;
        if (list_bit(c, m, bucket, 0, value != 0)) {
            int negative = list_bit(c, m, bucket, SIGN_DECISION, value < 0);
            size = list_magnitude(c, m, bucket, size);
            value = negative ? -size : size;
        }
        values[i] = value;
        before = last;
        last = size < 256 ? size : 256;
    }
}

/* ------------------------------------------------------------------ contexts */

/* See contexts.py for these. */
enum { NUM_BUCKETS = 14, NUM_INPUTS = 7, LARGEST = 120, MOST_CHANNELS = 4096 };
enum { FLAGS = 8, LAST_BIN = 9, MOST_BITS = 26, SIGN_INPUTS = 3, CLASSES = 64 };
enum { PRIOR_SEEN = 4 };
/* Of channels, as many as there are. */
static const int input_sizes[NUM_INPUTS] = {
    NUM_ENERGIES,
    NUM_BUCKETS * NUM_BUCKETS,
    NUM_BUCKETS * NUM_BUCKETS,
    NUM_BUCKETS * CLASSES,
    NUM_BUCKETS * NUM_BUCKETS * 5,
    0,
    CLASSES * NUM_BUCKETS,
};
static const int sign_sizes[SIGN_INPUTS] = {81, 66, 0};

typedef struct {
    /* What is coded, all of it from Python. */
    const int64_t *samples, *channels, *frequencies, *groups, *columns, *order;
    const int32_t *rank;
    Py_ssize_t num_samples, num_channels, num_planes, num_positions, width;
    int32_t offset;
    Arithmetic coder;
    /* What is remembered of what was coded. */
    int8_t *sizes; /* (S, R): signed magnitudes in half steps, of planes in order */
    int32_t *of_channels, *of_planes, of_sample, *signs;
    Slot *slots[NUM_INPUTS], *sign_slots[SIGN_INPUTS];
    int32_t *weights[2], sign_weights[2][2 * (SIGN_INPUTS + 1)];
    int state;
    /* The coefficient that is at hand. */
    Py_ssize_t row, plane, channel, sample, place; /* place: of the row, in its order */
    int64_t near[4];
    int32_t context[NUM_INPUTS], selected[2];
    int energy;
    void *room;
} Levels;

static Py_ssize_t known_channels(const Levels *v)
{
    return v->num_channels < MOST_CHANNELS ? v->num_channels : MOST_CHANNELS;
}

static Py_ssize_t num_slots(const Levels *v, int input)
{
    Py_ssize_t contexts = input_sizes[input] ? input_sizes[input] : known_channels(v);
    return contexts * NUM_CHOICES;
}

static Py_ssize_t num_sign_slots(const Levels *v, int input)
{
    return sign_sizes[input] ? sign_sizes[input] : 9 * known_channels(v);
}

static size_t room_of(const Levels *v)
{
    size_t slots = 0;
    for (int i = 0; i < NUM_INPUTS; i++)
        slots += (size_t)num_slots(v, i);
    for (int i = 0; i < SIGN_INPUTS; i++)
        slots += (size_t)num_sign_slots(v, i);
    size_t weights = (size_t)(CLASSES + NUM_BUCKETS) * NUM_CHOICES * (NUM_INPUTS + 1);
    size_t numbers = (size_t)(2 * v->num_channels + v->num_planes);
    return sizeof(Slot) * slots + 4 * (weights + numbers) +
           (size_t)(v->num_positions * v->num_planes);
}

static Slot first_slot(uint16_t chance, const int32_t *tables)
{
    Slot slot = {chance, PRIOR_SEEN, 0};
    slot.input = input_of(&slot, tables);
    return slot;
}

/* 0 without memory. */
static int start_levels(Levels *v)
{
    const int32_t *prior = v->coder.tables + PRIOR;
    uint8_t *room = v->room = calloc(room_of(v), 1);
    if (!room)
        return 0;
    for (int i = 0; i < NUM_INPUTS; i++) {
        v->slots[i] = (Slot *)room;
        start_slots(v->slots[i], num_slots(v, i));
        room += sizeof(Slot) * (size_t)num_slots(v, i);
    }
    for (int i = 0; i < NUM_ENERGIES * NUM_CHOICES; i++)
        v->slots[0][i] = first_slot((uint16_t)prior[i], v->coder.tables);
    for (int i = 0; i < SIGN_INPUTS; i++) {
        v->sign_slots[i] = (Slot *)room;
        start_slots(v->sign_slots[i], num_sign_slots(v, i));
        room += sizeof(Slot) * (size_t)num_sign_slots(v, i);
    }
    for (int j = 0; j < 2; j++) {
        Py_ssize_t sets = (j ? NUM_BUCKETS : CLASSES) * NUM_CHOICES;
        v->weights[j] = (int32_t *)room;
        start_weights(v->weights[j], sets, NUM_INPUTS, 10000);
        start_weights(v->sign_weights[j], 2, SIGN_INPUTS, 20000);
        room += 4 * (size_t)sets * (NUM_INPUTS + 1);
    }
    v->of_channels = (int32_t *)room;
    v->signs = v->of_channels + v->num_channels;
    v->of_planes = v->signs + v->num_channels;
    v->sizes = (int8_t *)(v->of_planes + v->num_planes);
    v->row = -1;
    v->plane = v->num_planes - 1;
    v->state = 0;
    return 1;
}

/* See Grid.neighbours in contexts.py. */
static void find_neighbours(Levels *v)
{
    static const int around[4][2] = {{0, -1}, {-1, 0}, {-1, -1}, {-1, 1}};
    Py_ssize_t y = v->row / v->width, x = v->row % v->width;
    Py_ssize_t height = v->num_positions / v->width;
    for (int k = 0; k < 4; k++) {
        v->near[k] = -1;
        for (int side = -1; side < 2; side += 2) {
            Py_ssize_t i = y + side * around[k][0], j = x + side * around[k][1];
            if (i < 0 || i >= height || j < 0 || j >= v->width)
                continue;
            if (v->rank[i * v->width + j] < v->rank[v->row])
                v->near[k] = i * v->width + j;
        }
    }
}

/* Go to a coefficient, row by row in their order, planes as they are numbered. */
static inline void go_to(Levels *v, Py_ssize_t at)
{
    Py_ssize_t plane = at % v->num_planes;
    v->place = at / v->num_planes;
    v->row = (Py_ssize_t)v->order[v->place];
    v->plane = plane;
    find_neighbours(v);
    v->sample = plane / v->num_channels;
    v->channel = plane % v->num_channels;
    if (!v->channel)
        v->of_sample = 0;
}

/* Go to the next one. */
static inline void go_on(Levels *v)
{
    if (++v->plane == v->num_planes) {
        go_to(v, (v->place + 1) * v->num_planes);
        return;
    }
    if (++v->channel == v->num_channels) {
        v->channel = 0;
        v->sample++;
        v->of_sample = 0;
    }
}

static inline int size_at(const Levels *v, int64_t row, Py_ssize_t plane)
{
    return row < 0 ? 0 : abs(v->sizes[row * v->num_planes + plane]);
}

static inline int bucket_of(const Levels *v, int value)
{
    return v->coder.tables[BUCKET + (value < 1023 ? value : 1023)];
}

static void find_contexts(Levels *v)
{
    Py_ssize_t plane = v->plane, channels = v->num_channels;
    const int64_t *near = v->near;
    int64_t energy = v->samples[v->sample] + v->channels[v->channel] +
                     v->frequencies[v->groups[v->row]] + v->offset;
    int e = energy < 0 ? 0 : energy < NUM_ENERGIES ? (int)energy : NUM_ENERGIES - 1;
    int class = e >> 1 < 59 ? e >> 1 : 59;
    int first = v->channel > 0 ? size_at(v, v->row, plane - 1) : 0;
    int second = v->channel > 1 ? size_at(v, v->row, plane - 2) : 0;
    int before = v->sample > 0 ? size_at(v, v->row, plane - channels) : 0;
    if (v->sample > 1)
        before += size_at(v, v->row, plane - 2 * channels);
    int around = 2 * (size_at(v, near[0], plane) + size_at(v, near[1], plane)) +
                 size_at(v, near[2], plane) + size_at(v, near[3], plane);
    int of_plane = v->of_planes[plane], of_channel = v->of_channels[v->channel];
    int beside = 2 * first + second;
    int all = (4 * around + 3 * beside + 4 * before + (of_channel >> 4) +
               (of_plane >> 4)) / 8;
    int plane_bucket = bucket_of(v, of_plane >> 5);
    int channel_bucket = bucket_of(v, of_channel >> 5), bucket = bucket_of(v, all);
    int octave = v->place >= 8 ? 4 : v->place >= 4 ? 3 : v->place >= 2 ? 2 : v->place > 0;
    int32_t *context = v->context;
    context[0] = e;
    context[1] = plane_bucket * NUM_BUCKETS + channel_bucket;
    context[2] = bucket_of(v, 2 * around) * NUM_BUCKETS + bucket_of(v, 3 * beside);
    context[3] = bucket_of(v, 4 * before) * CLASSES + class;
    context[4] = (channel_bucket * NUM_BUCKETS + bucket_of(v, v->of_sample >> 5)) * 5 +
                 octave;
    context[5] = (int32_t)(v->channel < MOST_CHANNELS ? v->channel : MOST_CHANNELS - 1);
    context[6] = class * NUM_BUCKETS + bucket;
    v->selected[0] = class;
    v->selected[1] = bucket;
    v->energy = e;
}

/* Set the slots and weights of a decision about the magnitude. */
static inline void select_slots(Levels *v, Mixer *m, int decision, int quantizer)
{
    int choice = 2 * decision + quantizer;
    for (int i = 0; i < NUM_INPUTS; i++)
        m->slots[i] = v->slots[i] + v->context[i] * NUM_CHOICES + choice;
    for (int j = 0; j < 2; j++)
        m->weights[j] = v->weights[j] +
                        (v->selected[j] * NUM_CHOICES + choice) * (NUM_INPUTS + 1);
}

/* Remember the size of the coefficient at hand, in half steps. */
static inline void remember(Levels *v, int64_t size, int negative)
{
    int clipped = size < LARGEST ? (int)size : LARGEST, wide = clipped << 8;
    int32_t *of_plane = v->of_planes + v->plane;
    int32_t *of_channel = v->of_channels + v->channel;
    v->sizes[v->row * v->num_planes + v->plane] = (int8_t)(negative ? -clipped : clipped);
    *of_plane += (wide - *of_plane) >> 2;
    *of_channel += (wide - *of_channel) >> (v->sample == 0 ? 1 : v->sample < 3 ? 2 : 3);
    v->of_sample += (wide - v->of_sample) >> 3;
}

static inline int sign_at(const Levels *v, int64_t row, Py_ssize_t plane)
{
    int size = row < 0 ? 0 : v->sizes[row * v->num_planes + plane];
    return size == 0 ? 0 : size > 0 ? 1 : 2;
}

static int code_sign(Levels *v, int is_large, int negative)
{
    const int64_t *near = v->near;
    Py_ssize_t plane = v->plane, channels = v->num_channels;
    int beside = v->channel > 0 ? sign_at(v, v->row, plane - 1) : 0;
    int before = v->sample > 0 ? sign_at(v, v->row, plane - channels) : 0;
    int second = v->sample > 1 ? sign_at(v, v->row, plane - 2 * channels) : 0;
    int32_t *of_channel = v->signs + v->channel;
    Mixer m;
    m.slots[0] = v->sign_slots[0] + sign_at(v, near[0], plane) * 27 +
                 sign_at(v, near[1], plane) * 9 + beside * 3 + before;
    m.slots[1] = v->sign_slots[1] + (*of_channel >> 7) + 16 + is_large * 33;
    m.slots[2] = v->sign_slots[2] + v->context[5] * 9 + before * 3 + second;
    for (int j = 0; j < 2; j++)
        m.weights[j] = v->sign_weights[j] + (j ? 0 : is_large * (SIGN_INPUTS + 1));
    negative = code_mixed(&v->coder, &m, SIGN_INPUTS, negative);
    *of_channel += ((negative ? -2047 : 2047) - *of_channel) >> 3;
    return negative;
}

/* Code the magnitude at hand by one of the two quantizers. */
static int64_t code_magnitude(Levels *v, int quantizer, int64_t magnitude)
{
    Mixer m;
    for (int i = 0; i < FLAGS; i++) {
        select_slots(v, &m, i, quantizer);
        if (!code_mixed(&v->coder, &m, NUM_INPUTS, magnitude > i))
            return i;
    }
    int64_t rest = magnitude - FLAGS + 2;
    int num_bits = 1;
    for (;; num_bits++) {
        int bin = num_bits - 1 < LAST_BIN ? num_bits - 1 : LAST_BIN;
        select_slots(v, &m, FLAGS + bin, quantizer);
        if (!code_mixed(&v->coder, &m, NUM_INPUTS,
                        num_bits < MOST_BITS && rest >> (num_bits + 1) > 0))
            break;
        if (num_bits == MOST_BITS) {
            v->coder.wrong = "a level of more than 26 bits";
            return 1;
        }
    }
    return (int64_t)(code_raw(&v->coder, num_bits, (uint64_t)rest) |
                     (uint64_t)1 << num_bits) + FLAGS - 2;
}

/* ------------------------------------------------------------------ trellis */

/* See trellis.py for these. */
enum { NUM_STATES = 8, UNIT = 512, HALF = UNIT / 2, LONGEST = 1024, SHORTEST = 64 };
enum { PROVISIONAL = 90, QUIET = 192, QUIET_ENERGY = 8, MOST_RATED = 7, GROUPS = 6 };
static const int64_t UNREACHED = (int64_t)1 << 62;
static const uint8_t next_state[NUM_STATES][2] = {{0, 1}, {3, 2}, {5, 4}, {6, 7},
                                                  {1, 0}, {2, 3}, {4, 5}, {7, 6}};

typedef struct {
    int64_t cost[2][2], magnitude[2][2]; /* by quantizer and parity */
} Candidates;

typedef struct {
    Candidates candidates[LONGEST];
    uint8_t from[LONGEST][NUM_STATES], parity[LONGEST][NUM_STATES];
    int64_t sizes[LONGEST], magnitudes[LONGEST]; /* sizes: in 512ths of a step */
    int32_t of_planes[LONGEST];
    uint8_t negative[LONGEST];
} Block;

static inline void offer(Candidates *c, int quantizer, int64_t magnitude, int64_t size,
                         int64_t rate)
{
    int64_t error = magnitude ? magnitude * UNIT - quantizer * HALF - size : -size;
    int64_t cost = error * error + rate;
    int parity = (int)(magnitude & 1);
    if (cost < c->cost[quantizer][parity]) {
        c->cost[quantizer][parity] = cost;
        c->magnitude[quantizer][parity] = magnitude;
    }
}

/* What the coefficient at hand may become, and its costs by the models as they are. */
static void find_candidates(Levels *v, Candidates *c, int64_t size, int64_t price)
{
    const int32_t *cost = v->coder.tables + COST, *tables = v->coder.tables;
    for (int q = 0; q < 2; q++) {
        c->cost[q][0] = c->cost[q][1] = UNREACHED;
        c->magnitude[q][0] = c->magnitude[q][1] = 0;
        if (v->energy < QUIET_ENERGY && size < QUIET) {
            offer(c, q, 0, size, 0);
            continue;
        }
        int64_t below = (size + q * HALF) / UNIT;
        if (below >= MOST_RATED) {
            offer(c, q, below, size, 0);
            offer(c, q, below + 1, size, 0);
            continue;
        }
        Mixer m;
        int64_t rate = 0, first = below <= 2 ? 0 : below - 1;
        for (int i = 0; i <= below + 1; i++) {
            select_slots(v, &m, i, q);
            predict(&m, NUM_INPUTS, tables);
            if (i >= first)
                offer(c, q, i, size,
                      price * (rate + cost[(65536 - m.chance) >> 4] + (i ? 256 : 0)));
            rate += cost[m.chance >> 4];
        }
    }
}

/* The cheapest way through a block, from the state at hand. */
static void search(Levels *v, Block *b, Py_ssize_t num)
{
    int64_t costs[NUM_STATES], reached[NUM_STATES];
    for (int s = 0; s < NUM_STATES; s++)
        costs[s] = s == v->state ? 0 : UNREACHED;
    for (Py_ssize_t i = 0; i < num; i++) {
        for (int s = 0; s < NUM_STATES; s++)
            reached[s] = UNREACHED;
        for (int s = 0; s < NUM_STATES; s++)
            for (int parity = 0; parity < 2; parity++) {
                int64_t more = b->candidates[i].cost[s & 1][parity];
                int to = next_state[s][parity];
                if (costs[s] == UNREACHED || more == UNREACHED ||
                    costs[s] + more >= reached[to])
                    continue;
                reached[to] = costs[s] + more;
                b->from[i][to] = (uint8_t)s;
                b->parity[i][to] = (uint8_t)parity;
            }
        memcpy(costs, reached, sizeof costs);
    }
    int s = 0;
    for (int t = 1; t < NUM_STATES; t++)
        if (costs[t] < costs[s])
            s = t;
    for (Py_ssize_t i = num; i-- > 0;) {
        int from = b->from[i][s];
        b->magnitudes[i] = b->candidates[i].magnitude[from & 1][b->parity[i][s]];
        s = from;
    }
}

/* Take coefficients to magnitudes, and leave what is remembered as it was. */
static void quantize_block(Levels *v, Block *b, const float *coefficients, float inverse,
                           Py_ssize_t start, Py_ssize_t num, int64_t price,
                           int32_t *of_channels)
{
    const float most = 8589934592.0f; /* 2**24 steps */
    int32_t of_sample = v->of_sample;
    memcpy(of_channels, v->of_channels, sizeof *of_channels * (size_t)v->num_channels);
    for (Py_ssize_t i = 0; i < num; i++)
        b->of_planes[i] = v->of_planes[(start + i) % v->num_planes];
    go_to(v, start);
    for (Py_ssize_t i = 0; i < num; i++) {
        float x = coefficients[v->row * v->num_planes + v->columns[v->plane]];
        float scaled = fabsf(x) * inverse;
        int64_t size = (int64_t)rintf(scaled < most ? scaled : most);
        b->sizes[i] = size;
        b->negative[i] = x < 0;
        find_contexts(v);
        find_candidates(v, b->candidates + i, size, price);
        remember(v, (size + PROVISIONAL) / HALF, 0);
        if (i + 1 < num)
            go_on(v);
    }
    memcpy(v->of_channels, of_channels, sizeof *of_channels * (size_t)v->num_channels);
    for (Py_ssize_t i = num; i-- > 0;)
        v->of_planes[(start + i) % v->num_planes] = b->of_planes[i];
    v->of_sample = of_sample;
    search(v, b, num);
    go_to(v, start);
}

/* Code what is at hand; returns its size in half steps. */
static int64_t code_level(Levels *v, int64_t magnitude, int *negative, int *group)
{
    int quantizer = v->state & 1;
    find_contexts(v);
    magnitude = code_magnitude(v, quantizer, magnitude);
    *negative = magnitude ? code_sign(v, magnitude > 1, *negative) : 0;
    *group = 3 * quantizer + (magnitude < 3 ? (int)magnitude : 3) - 1;
    v->state = next_state[v->state][magnitude & 1];
    int64_t size = magnitude ? 2 * magnitude - quantizer : 0;
    remember(v, size, *negative);
    return size;
}

/* Blocks grow with what the models have learned. */
static Py_ssize_t block_size(Py_ssize_t start, Py_ssize_t left)
{
    Py_ssize_t size = start / 8;
    size = size < SHORTEST ? SHORTEST : size < LONGEST ? size : LONGEST;
    return size < left ? size : left;
}

static const char *encode_levels(Levels *v, const float *coefficients, float inverse,
                                 int64_t price, int64_t *sums)
{
    Py_ssize_t total = v->num_positions * v->num_planes, num;
    Block *b = malloc(sizeof *b);
    int32_t *of_channels = malloc(sizeof *of_channels * (size_t)v->num_channels);
    if (!b || !of_channels)
        v->coder.wrong = no_memory;
    for (Py_ssize_t start = 0; start < total && !v->coder.wrong; start += num) {
        num = block_size(start, total - start);
        quantize_block(v, b, coefficients, inverse, start, num, price, of_channels);
        for (Py_ssize_t i = 0; i < num; i++) {
            int negative = b->negative[i], group;
            int64_t size = code_level(v, b->magnitudes[i], &negative, &group);
            int64_t error = size * HALF - b->sizes[i];
            sums[3 * GROUPS] += error * error;
            if (size) {
                sums[group]++;
                sums[GROUPS + group] += error;
            }
            if (i + 1 < num)
                go_on(v);
        }
    }
    free(b);
    free(of_channels);
    return v->coder.wrong;
}

static void decode_levels(Levels *v, float step, const float *taken, float *out)
{
    Py_ssize_t total = v->num_positions * v->num_planes;
    float half = step * 0.5f;
    go_to(v, 0);
    for (Py_ssize_t i = 0; i < total && !v->coder.wrong; i++) {
        int negative = 0, group;
        int64_t size = code_level(v, 0, &negative, &group);
        float value = size ? (float)size * half - taken[group] : 0.0f;
        out[v->row * v->num_planes + v->columns[v->plane]] = negative ? -value : value;
        if (i + 1 < total)
            go_on(v);
    }
}

/* ------------------------------------------------------------------ Python */

static int all_within(Buffer numbers, int64_t low, int64_t high)
{
    const int64_t *data = (const int64_t *)numbers.data;
    for (Py_ssize_t i = 0; i < numbers.size / 8; i++)
        if (data[i] < low || data[i] > high)
            return 0;
    return 1;
}

/* Samples, channels, frequencies, groups, columns, order, rank; see contexts.py. */
static int set_grid(Levels *v, PyObject **objects, Py_ssize_t width, Py_ssize_t offset,
                    Buffer tables)
{
    Buffer b[7];
    for (int i = 0; i < 7; i++)
        if (as_buffer(objects[i], b + i, 0))
            return 0;
    v->num_samples = b[0].size / 8;
    v->num_channels = b[1].size / 8;
    v->num_positions = b[3].size / 8;
    v->num_planes = b[4].size / 8;
    Py_ssize_t num_groups = b[2].size / 8;
    int fits = v->num_samples > 0 && v->num_channels > 0 && v->num_positions > 0 &&
               v->num_planes / v->num_samples == v->num_channels &&
               v->num_planes % v->num_samples == 0 && width > 0 &&
               v->num_positions % width == 0 && holds(tables, TABLES, 4) &&
               offset >= INT16_MIN && offset <= INT16_MAX &&
               holds(b[6], v->num_positions, 4);
    const Py_ssize_t sizes[6] = {v->num_samples,   v->num_channels, num_groups,
                                 v->num_positions, v->num_planes,   v->num_positions};
    const int64_t low[6] = {-1000, -1000, -1000, 0, 0, 0};
    const int64_t high[6] = {1000,           1000,
                             1000,           num_groups - 1,
                             v->num_planes - 1, v->num_positions - 1};
    for (int i = 0; i < 6 && fits; i++)
        fits = holds(b[i], sizes[i], 8) && all_within(b[i], low[i], high[i]);
    if (!fits) {
        refuse("the grid of coefficients does not fit");
        return 0;
    }
    v->samples = (const int64_t *)b[0].data;
    v->channels = (const int64_t *)b[1].data;
    v->frequencies = (const int64_t *)b[2].data;
    v->groups = (const int64_t *)b[3].data;
    v->columns = (const int64_t *)b[4].data;
    v->order = (const int64_t *)b[5].data;
    v->rank = (const int32_t *)b[6].data;
    v->width = width;
    v->offset = (int32_t)offset;
    return 1;
}

/* Whether there are as many coefficients, of float32. */
static int holds_all(const Levels *v, Buffer coefficients)
{
    return coefficients.size % 4 == 0 && (uintptr_t)coefficients.data % 4 == 0 &&
           coefficients.size / 4 / v->num_planes == v->num_positions &&
           coefficients.size / 4 % v->num_planes == 0;
}

PyDoc_STRVAR(encode_doc,
"encode_trellis(lists, sizes, coefficients, samples, channels, frequencies, groups,\n"
"               columns, order, rank, width, offset, inverse, price, tables, sums)\n\n"
"See trellis.encode in the module beside this one.");

static PyObject *encode_trellis(PyObject *self, PyObject *args)
{
    PyObject *o[4], *grid[7], *result = NULL;
    Py_ssize_t width, offset, price;
    double inverse;
    Buffer lists, sizes, coefficients, tables, sums, copy = {NULL, 0};
    Levels v;
    Bytes out = {NULL, 0, 0};
    PyObject *told;
    (void)self;
    memset(&v, 0, sizeof v);
    if (!PyArg_ParseTuple(args, "OOOOOOOOOOnndnOO", &o[0], &o[1], &o[2], &grid[0],
                          &grid[1], &grid[2], &grid[3], &grid[4], &grid[5], &grid[6],
                          &width, &offset, &inverse, &price, &o[3], &told) ||
        as_buffer(o[0], &lists, 0) || as_buffer(o[1], &sizes, 0) ||
        as_buffer(o[2], &coefficients, 0) || as_buffer(o[3], &tables, 0) ||
        as_buffer(told, &sums, 1))
        return NULL;
    if (!set_grid(&v, grid, width, offset, tables))
        return NULL;
    Py_ssize_t left = lists.size / 8, num_lists = sizes.size / 8;
    int fits = holds(lists, left, 8) && holds(sizes, num_lists, 8) &&
               holds_all(&v, coefficients) && holds(sums, 3 * GROUPS + 1, 8) &&
               price >= 0 && price < 4096 && inverse > 0 && inverse <= 3.0e38;
    for (Py_ssize_t i = 0; i < num_lists && fits; i++) {
        int64_t size = ((const int64_t *)sizes.data)[i];
        fits = size >= 0 && size <= left;
        left -= (Py_ssize_t)size;
    }
    if (!fits || left ||
        !all_within(lists, -((int64_t)1 << MOST_EXPONENT), (int64_t)1 << MOST_EXPONENT))
        return refuse("the lists and coefficients do not fit");
    const char *wrong = no_memory;
    Py_BEGIN_ALLOW_THREADS
    ListModel *model = malloc(sizeof *model);
    v.coder = (Arithmetic){0, UINT32_MAX, 0, 0, NULL, 0, &out,
                           (const int32_t *)tables.data, NULL};
    copy.data = malloc((size_t)lists.size + 8);
    if (model && copy.data && start_levels(&v)) {
        int64_t *values = (int64_t *)copy.data;
        memcpy(values, lists.data, (size_t)lists.size);
        start_lists(model);
        for (Py_ssize_t i = 0; i < num_lists; i++) {
            Py_ssize_t size = (Py_ssize_t)((const int64_t *)sizes.data)[i];
            code_list(&v.coder, model, values, size);
            values += size;
        }
        memset(sums.data, 0, (size_t)sums.size);
        wrong = encode_levels(&v, (const float *)coefficients.data, (float)inverse,
                              (int64_t)price, (int64_t *)sums.data);
        uint8_t *last = extend(&out, 1);
        if (last)
            *last = (uint8_t)((v.coder.low >> 24) + 1);
        else
            wrong = no_memory;
    }
    free(copy.data);
    free(model);
    free(v.room);
    Py_END_ALLOW_THREADS
    if (!wrong)
        result = PyBytes_FromStringAndSize((char *)out.data, (Py_ssize_t)out.size);
    else
        PyErr_NoMemory();
    free(out.data);
    return result;
}

/* What is kept between lists, in memory of Python's. */
typedef struct {
    Arithmetic coder;
    ListModel lists;
} Opened;

static int opened_of(PyObject *state, PyObject *data, PyObject *tables, Opened **opened)
{
    Buffer s, d, t;
    if (as_buffer(state, &s, 1) || as_buffer(data, &d, 0) || as_buffer(tables, &t, 0))
        return 0;
    if (s.size != sizeof(Opened) || (uintptr_t)s.data % 8 || !holds(t, TABLES, 4)) {
        refuse("the state of a decoder does not fit");
        return 0;
    }
    *opened = (Opened *)s.data;
    Arithmetic *c = &(*opened)->coder;
    c->data = d.data;
    c->size = d.size;
    c->tables = (const int32_t *)t.data;
    c->out = NULL;
    c->wrong = NULL;
    return 1;
}

PyDoc_STRVAR(open_doc,
"open_trellis(state, data, tables) -> bytes of a state\n\n"
"Begin to decode; a state that is empty only tells its size.");

static PyObject *open_trellis(PyObject *self, PyObject *args)
{
    PyObject *o[3];
    Buffer state;
    Opened *opened;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO", &o[0], &o[1], &o[2]) ||
        as_buffer(o[0], &state, 1))
        return NULL;
    if (state.size) {
        if (!opened_of(o[0], o[1], o[2], &opened))
            return NULL;
        start_lists(&opened->lists);
        Arithmetic *c = &opened->coder;
        c->low = 0;
        c->high = UINT32_MAX;
        c->code = 0;
        c->at = 0;
        for (int i = 0; i < 4; i++)
            c->code = c->code << 8 | next_byte(c);
    }
    return PyLong_FromSize_t(sizeof(Opened));
}

PyDoc_STRVAR(list_doc,
"decode_list(state, data, tables, out) -> what is wrong\n\n"
"See mixing.code_list in the module beside this one.");

static PyObject *decode_list(PyObject *self, PyObject *args)
{
    PyObject *o[4];
    Buffer out;
    Opened *opened;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOO", &o[0], &o[1], &o[2], &o[3]) ||
        as_buffer(o[3], &out, 1) || !opened_of(o[0], o[1], o[2], &opened))
        return NULL;
    if (!holds(out, out.size / 8, 8))
        return refuse("a list does not fit");
    Arithmetic *c = &opened->coder;
    Py_BEGIN_ALLOW_THREADS
    memset(out.data, 0, (size_t)out.size);
    code_list(c, &opened->lists, (int64_t *)out.data, out.size / 8);
    Py_END_ALLOW_THREADS
    return PyUnicode_FromString(c->wrong ? c->wrong : "");
}

PyDoc_STRVAR(decode_doc,
"decode_trellis(state, data, samples, channels, frequencies, groups, columns, order,\n"
"               rank, width, offset, step, taken, tables, out) -> what is wrong\n\n"
"See trellis.decode in the module beside this one.");

static PyObject *decode_trellis(PyObject *self, PyObject *args)
{
    PyObject *o[5], *grid[7];
    Py_ssize_t width, offset;
    double step;
    Buffer taken, tables, out;
    Opened *opened;
    Levels v;
    (void)self;
    memset(&v, 0, sizeof v);
    if (!PyArg_ParseTuple(args, "OOOOOOOOOnndOOO", &o[0], &o[1], &grid[0], &grid[1],
                          &grid[2], &grid[3], &grid[4], &grid[5], &grid[6], &width,
                          &offset, &step, &o[2], &o[3], &o[4]) ||
        as_buffer(o[2], &taken, 0) || as_buffer(o[3], &tables, 0) ||
        as_buffer(o[4], &out, 1) || !opened_of(o[0], o[1], o[3], &opened) ||
        !set_grid(&v, grid, width, offset, tables))
        return NULL;
    if (!holds(taken, GROUPS, 4) || !holds_all(&v, out))
        return refuse("coefficients and centroids do not fit");
    const char *wrong = no_memory;
    Py_BEGIN_ALLOW_THREADS
    v.coder = opened->coder;
    if (start_levels(&v)) {
        decode_levels(&v, (float)step, (const float *)taken.data, (float *)out.data);
        wrong = v.coder.wrong;
        if (!wrong && v.coder.at != v.coder.size + FLUSHED)
            wrong = "coded levels are left over";
    }
    free(v.room);
    Py_END_ALLOW_THREADS
    if (wrong == no_memory)
        return PyErr_NoMemory();
    return PyUnicode_FromString(wrong ? wrong : "");
}

PyMethodDef trellis_methods[] = {
    {"decode_list", decode_list, METH_VARARGS, list_doc},
    {"decode_trellis", decode_trellis, METH_VARARGS, decode_doc},
    {"encode_trellis", encode_trellis, METH_VARARGS, encode_doc},
    {"open_trellis", open_trellis, METH_VARARGS, open_doc},
    {NULL, NULL, 0, NULL},
};
