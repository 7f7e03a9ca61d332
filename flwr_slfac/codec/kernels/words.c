/* All symbols of a frame as one string of words, and back: see waterfill/words.py. The
 * frequencies of symbols from the bytes of their model: see waterfill/model.py.
 */
#include "coding.h"

#include <stdlib.h>

/* See words.py for these; costs of symbols are in 256ths of a bit. */
enum { COST_BITS = 8, BITS_PER_LANE = 600, SYMBOLS_PER_LANE = 2048, FEWEST_LANES = 8,
       MOST_LANES = 256, LONGEST_TAIL = 2048, TAIL_SHARE = 64, MOST_LOG_LANES = 10,
       HAS_TAIL = 128 };

const char no_memory[] = "too little memory";

/* ------------------------------------------------------------------ frequencies */

/* The weights of magnitudes 0, 1, ... up to the last that may occur, and their number. */
static int weights_of_magnitudes(const Digits *d, const Chances *chances,
                                 const uint8_t *model, int num, int64_t *weights)
{
    int64_t left = (int64_t)1 << CHANCE_BITS;
    int found = 0, limit = (int)d->limit;
    for (int i = 0; i < num; i++) {
        int64_t chance = chances->chances[model[i]];
        int stop = bucket_ends[i] + 1 < limit ? bucket_ends[i] + 1 : limit;
        while (found < stop) {
            weights[found] = left * chance >> CHANCE_BITS;
            left -= weights[found++];
        }
    }
    if (found == limit)
        weights[found++] = left;
    else
        weights[found - 1] += left;
    return found;
}

/* To frequencies of a sum of 2**14, at least 1 where there is a weight. */
static void scale_weights(const int64_t *weights, int num, uint16_t *frequencies)
{
    int64_t sum = 0, rest = SCALE, whole[NUM_SYMBOLS] = {0};
    int largest = 0, some = 0;
    for (int i = 0; i < num; i++)
        sum += weights[i];
    for (int i = 0; i < num; i++) {
        int64_t share = (weights[i] << SCALE_BITS) / sum;
        whole[i] = weights[i] > 0 ? share > 1 ? share : 1 : 0;
        some += weights[i] > 0;
        rest -= whole[i];
        largest = whole[i] > whole[largest] ? i : largest;
    }
    whole[largest] += rest;
    if (whole[largest] < 1) {
        rest = SCALE;
        for (int i = 0; i < num; i++) {
            int64_t share = (weights[i] << SCALE_BITS) / sum;
            whole[i] = weights[i] > 0 ? 1 + share * (SCALE - some) / SCALE : 0;
            rest -= whole[i];
        }
        whole[largest] += rest;
    }
    for (int i = 0; i < NUM_SYMBOLS; i++)
        frequencies[i] = (uint16_t)(i < num ? whole[i] : 0);
}

int frequencies_of(const Digits *d, const Chances *chances, const uint8_t *model,
                   Py_ssize_t size, uint16_t *frequencies)
{
    const int64_t one = (int64_t)1 << CHANCE_BITS;
    int most = 0, signs = d->is_signed != 0, base = (int)d->base, zero = (int)d->zero;
    for (int i = 0; i < MOST_BUCKETS; i++)
        most += (i ? bucket_ends[i - 1] + 1 : 0) < d->limit;
    if (size <= signs || size > signs + most)
        return 0;
    for (Py_ssize_t i = 0; i < size; i++)
        if (model[i] >= chances->num_chances)
            return 0;
    int64_t magnitudes[129], weights[NUM_SYMBOLS] = {0};
    int num = weights_of_magnitudes(d, chances, model + signs, (int)size - signs,
                                    magnitudes);
    if (num == 1)
        return 0;
    for (int m = 0; m < num; m++) {
        int64_t weight = magnitudes[m], negative = 0;
        if (m && signs) {
            negative = weight * chances->chances[model[0]] >> CHANCE_BITS;
            weight -= negative;
            weights[zero - m] = negative > 1 ? negative : 1;
        }
        weights[zero + m] = weight > 1 ? weight : 1;
    }
    int64_t product[NUM_SYMBOLS];
    memcpy(product, weights, (size_t)base * sizeof *product);
    int size_now = base;
    for (int k = 1; k < d->per_symbol; k++, size_now *= base)
        for (int i = size_now - 1; i >= 0; i--) {
            /* From the end, so that what is still needed is not written over. */
            int64_t outer = product[i];
            for (int j = base - 1; j >= 0; j--)
                product[i * base + j] = (outer * weights[j] + one - 1) >> CHANCE_BITS;
        }
    scale_weights(product, size_now, frequencies);
    return 1;
}

void uniform_frequencies(int num_bits, uint16_t *frequencies)
{
    for (int i = 0; i < NUM_SYMBOLS; i++)
        frequencies[i] = i < 1 << num_bits ? (uint16_t)(1 << (SCALE_BITS - num_bits)) : 0;
}

/* About the bits of a symbol, in 256ths: 14 less log2 of its frequency, along chords. */
int64_t cost_of(uint32_t f)
{
    int bits = (int)floor_log2(f);
    return ((int64_t)(SCALE_BITS - bits) << COST_BITS) -
           ((int64_t)((f - (1u << bits)) << COST_BITS) >> bits);
}

int64_t cost_of_counts(const int64_t *counts, const uint16_t *frequencies)
{
    int64_t cost = 0;
    for (int i = 0; i < NUM_SYMBOLS; i++)
        if (counts[i])
            cost += counts[i] * cost_of(frequencies[i]);
    return cost;
}

/* ------------------------------------------------------------------ write */

uint8_t *extend(Bytes *bytes, size_t more)
{
    size_t size = bytes->size + more;
    if (size > bytes->room) {
        size_t room = size + size / 2 + 256;
        uint8_t *data = realloc(bytes->data, room);
        if (!data)
            return NULL;
        bytes->data = data;
        bytes->room = room;
    }
    uint8_t *end = bytes->data + bytes->size;
    bytes->size = size;
    return end;
}

uint8_t *add_segment(Writer *w, Py_ssize_t num, int begins, int64_t cost,
                     const uint16_t *frequencies)
{
    Segment segment = {w->symbols.size, num, cost, begins, {0}};
    memcpy(segment.frequencies, frequencies, sizeof segment.frequencies);
    uint8_t *symbols = extend(&w->symbols, (size_t)num);
    uint8_t *place = symbols ? extend(&w->segments, sizeof segment) : NULL;
    if (!place) {
        w->failed = 1;
        return NULL;
    }
    memcpy(place, &segment, sizeof segment);
    return symbols;
}

void free_writer(Writer *w)
{
    free(w->parameters.data);
    free(w->symbols.data);
    free(w->segments.data);
}

static int log_lanes(int64_t cost, int64_t total)
{
    int64_t wanted = (cost >> COST_BITS) / BITS_PER_LANE;
    int log = 0;
    if (total / SYMBOLS_PER_LANE > wanted)
        wanted = total / SYMBOLS_PER_LANE;
    if (wanted < FEWEST_LANES)
        return 0;
    wanted = wanted < MOST_LANES ? wanted : MOST_LANES;
    while (wanted >> (log + 1))
        log++;
    return log;
}

/* How many symbols at the end about fill the room in states. */
static size_t tail_of(const Writer *w, const Segment *segments, size_t num, int lanes)
{
    int64_t room = (16 * (int64_t)lanes - 32) << COST_BITS, cost = 0;
    size_t total = w->symbols.size, length = 0;
    size_t longest = total / TAIL_SHARE > LONGEST_TAIL ? total / TAIL_SHARE : LONGEST_TAIL;
    for (size_t s = num; s-- > 0;) {
        const uint8_t *symbols = w->symbols.data + segments[s].at;
        for (Py_ssize_t i = segments[s].num - 1; i >= 0; i--, length++) {
            cost += cost_of(segments[s].frequencies[symbols[i]]);
            if (cost >= room || length == longest)
                return length;
        }
    }
    return length;
}

/* Codes the symbols in [first, last) of all; returns where the words begin. */
static uint8_t *code(const Writer *w, const Segment *segments, size_t num, size_t first,
                     size_t last, uint32_t *states, Py_ssize_t num_lanes, uint8_t *next)
{
    EncodeEntry table[NUM_SYMBOLS];
    Py_ssize_t lane = 0;
    size_t stop = 0;
    for (size_t s = num; s-- > 0;) {
        size_t begin = segments[s].at, end = begin + (size_t)segments[s].num;
        if (s + 1 == num || segments[s + 1].begins) {
            /* The batch that ends here; its first symbol is on the first lane. */
            size_t batch = s;
            while (!segments[batch].begins)
                batch--;
            size_t from = segments[batch].at > first ? segments[batch].at : first;
            stop = end < last ? end : last;
            lane = stop > from ? (Py_ssize_t)((stop - from) % (size_t)num_lanes) : 0;
        }
        begin = begin > first ? begin : first;
        end = end < last ? end : last;
        stop = begin;
        if (begin >= end)
            continue;
        fill_encode_table(table, segments[s].frequencies);
        next = encode_segment(table, states, num_lanes, &lane, next,
                              w->symbols.data + begin, (Py_ssize_t)(end - begin));
    }
    return next;
}

static void pack_states(const uint32_t *states, int lanes, Bytes *out)
{
    uint8_t *nibbles = extend(out, (size_t)lanes / 2), *next = nibbles + lanes / 2;
    uint64_t word = 0;
    int fill = 0;
    memset(nibbles, 0, (size_t)lanes / 2);
    for (int i = 0; i < lanes; i++) {
        uint32_t upper = states[i] >> 16;
        int length = 0;
        while (upper >> length > 1)
            length++;
        nibbles[i / 2] |= (uint8_t)(length << 4 * (i % 2));
        /* Below its first bit, which is known, an upper half has so many bits. */
        word |= (uint64_t)((upper - (1u << length)) | (states[i] & 0xffff) << length)
                << fill;
        for (fill += length + 16; fill >= 8; fill -= 8, word >>= 8)
            *next++ = (uint8_t)word;
    }
    if (fill)
        *next++ = (uint8_t)word;
    out->size = (size_t)(next - out->data);
}

int write_words(Writer *w, Bytes *out)
{
    const Segment *segments = (const Segment *)w->segments.data;
    size_t num = w->segments.size / sizeof *segments, total = w->symbols.size;
    /* A word a symbol at most, and the one more that is written before it is kept; for
     * body and tail, whose first states take four bytes. */
    size_t most = 2 * total + 16;
    uint8_t *buffer = malloc(most), *end = buffer ? buffer + most : NULL;
    uint32_t states[MOST_LANES], one = LOWER_BOUND;
    int64_t cost = 0;
    for (size_t s = 0; s < num; s++)
        cost += segments[s].cost;
    int log = log_lanes(cost, (int64_t)total), lanes = 1 << log;
    size_t body = log ? total - tail_of(w, segments, num, lanes) : 0;
    if (!buffer)
        return 0;
    uint8_t *tail = code(w, segments, num, body, total, &one, 1, end);
    tail -= 4;
    memcpy(tail, &one, 4);
    size_t carried = (size_t)(end - tail), room = log ? 2 * (size_t)lanes : 0;
    uint8_t *head = extend(out, 5 + 5 * (size_t)lanes + carried);
    if (!head) {
        free(buffer);
        return 0;
    }
    out->size -= 5 * (size_t)lanes + carried;
    if (!log) {
        head[0] = 0;
        out->size -= 4;
        memcpy(extend(out, carried), tail, carried);
        free(buffer);
        return 1;
    }
    head[0] = (uint8_t)(log | HAS_TAIL);
    uint32_t num_body = (uint32_t)body;
    memcpy(head + 1, &num_body, 4);
    for (int i = 0; i < lanes; i++) {
        uint32_t low = 0;
        for (size_t j = 0; j < 2; j++)
            low |= 2 * (size_t)i + j < carried ? (uint32_t)tail[2 * i + j] << 8 * j : 0;
        states[i] = low + LOWER_BOUND;
    }
    /* What the states have no room for goes to the very end. */
    uint8_t *rest = tail + (carried < room ? carried : room);
    uint8_t *words = code(w, segments, num, 0, body, states, lanes, rest);
    pack_states(states, lanes, out);
    uint8_t *place = extend(out, (size_t)(end - words));
    if (place)
        memcpy(place, words, (size_t)(end - words));
    free(buffer);
    return place != NULL;
}

/* ------------------------------------------------------------------ read */

static void unpack_states(Reader *r, int num_lanes)
{
    Py_ssize_t num = num_lanes / 2, left = r->words_end - r->words;
    if (left < num) {
        r->wrong = "the states of coded words end early";
        return;
    }
    const uint8_t *nibbles = r->words, *next = nibbles + num;
    Py_ssize_t bits = 0;
    for (Py_ssize_t i = 0; i < num; i++)
        bits += 32 + (nibbles[i] & 15) + (nibbles[i] >> 4);
    if (left - num < (bits + 7) / 8) {
        r->wrong = "the states of coded words end early";
        return;
    }
    uint64_t word = 0;
    int fill = 0;
    for (int i = 0; i < num_lanes; i++) {
        int length = nibbles[i / 2] >> 4 * (i % 2) & 15;
        for (; fill < length + 16; fill += 8)
            word |= (uint64_t)*next++ << fill;
        uint32_t upper = (uint32_t)(word & ((1u << length) - 1)) + (1u << length);
        r->states[i] = upper << 16 | (uint32_t)(word >> length & 0xffff);
        word >>= length + 16;
        fill -= length + 16;
    }
    r->words = next;
}

void open_words(Reader *r, Buffer words)
{
    r->words = words.data;
    r->words_end = words.data + words.size;
    r->left = -1;
    r->num_lanes = 1;
    if (words.size < 5) {
        r->wrong = "there are too few bytes of words";
        return;
    }
    int kind = words.data[0], log = kind ? kind ^ HAS_TAIL : 0;
    if (kind && (log < 1 || log > MOST_LOG_LANES)) {
        r->wrong = "coded words are of an unknown kind";
        return;
    }
    r->num_lanes = (Py_ssize_t)1 << log;
    r->states = malloc((size_t)r->num_lanes * sizeof *r->states);
    if (!r->states) {
        r->wrong = no_memory;
        return;
    }
    uint32_t first;
    memcpy(&first, words.data + 1, 4);
    r->words += 5;
    if (kind) {
        r->left = first;
        unpack_states(r, 1 << log);
    } else {
        r->states[0] = first;
    }
}

void free_reader(Reader *r)
{
    free(r->states);
    free(r->owned);
}

/* Goes on with what the states of the body carry. */
static void begin_tail(Reader *r)
{
    size_t carried = 2 * (size_t)r->num_lanes, rest = (size_t)(r->words_end - r->words);
    uint8_t *joined = malloc(carried + rest);
    if (!joined) {
        r->wrong = no_memory;
        return;
    }
    for (Py_ssize_t i = 0; i < r->num_lanes; i++) {
        if (r->states[i] >> 16 != 1)
            r->wrong = "the coded words are not valid";
        joined[2 * i] = (uint8_t)r->states[i];
        joined[2 * i + 1] = (uint8_t)(r->states[i] >> 8);
    }
    memcpy(joined + carried, r->words, rest);
    r->owned = joined;
    r->left = -1;
    r->num_lanes = 1;
    memcpy(r->states, joined, 4);
    r->words = joined + 4;
    r->words_end = joined + carried + rest;
}

void read_batch(Reader *r, int num, const int64_t *counts, const uint16_t *frequencies,
                uint8_t *out)
{
    DecodeTable table;
    Py_ssize_t lane = 0;
    for (int s = 0; s < num && !r->wrong; s++) {
        int64_t count = counts[s];
        if (count)
            fill_decode_table(&table, frequencies + NUM_SYMBOLS * s);
        while (count && !r->wrong) {
            int64_t some = r->left >= 0 && r->left < count ? r->left : count;
            if (!decode_segment(&table, r->states, r->num_lanes, &lane, &r->words,
                                r->words_end, out, (Py_ssize_t)some))
                r->wrong = "the coded words end early";
            out += some;
            count -= some;
            r->left -= r->left >= 0 ? some : 0;
            if (count && !r->wrong) {
                begin_tail(r);
                lane = 0;
            }
        }
    }
}

void close_words(Reader *r)
{
    if (!r->wrong && r->left > 0)
        r->wrong = "coded symbols are left over";
    if (!r->wrong && r->left == 0)
        begin_tail(r);
    /* What a short tail leaves free in the states is zero. */
    for (Py_ssize_t i = 0; !r->wrong && i < r->num_lanes; i++)
        if (r->states[i] != LOWER_BOUND)
            r->wrong = "coded words are left over";
    for (; !r->wrong && r->words < r->words_end; r->words++)
        if (*r->words)
            r->wrong = "coded words are left over";
}
