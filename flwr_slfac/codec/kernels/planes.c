/* Planes to coefficients and back, by separable transforms. The reference is planes.py.
 *
 * Sixteen planes at a time lie in a tile, which a core's cache holds, place by place: so
 * what is done to a place is done to sixteen neighbours in memory at once.
 */
#include "buffers.h"
#include "turn.h"

#include <stdlib.h>

/* A cache line of one place. */
enum { LANES = 16, MOST_SIZE = 64, MOST_STAGES = 16, MOST_GROUP = 4 };

/* One dimension of the first rows and columns of a plane, see stages.py. */
typedef struct {
    int32_t rows, columns, is_along_rows, folds, num_groups;
    int32_t n; /* of a line */
    const int32_t *groups;
    const float *weights;
} Stage;

typedef void Line(const Stage *, float *, Py_ssize_t, float *);
typedef void Squares(const float *, Py_ssize_t, float *);

/* The types of vectors may be anywhere, and lie over plain floats. */
#ifdef __GNUC__
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define VECTOR_OF(bytes) __attribute__((vector_size(bytes), aligned(4), may_alias))
typedef float Narrow VECTOR_OF(16);
#define VECTOR Narrow
#define NAME(x) narrow_##x
#define TARGET
#include "lines.h"
#if defined(__x86_64__)
#define HAS_WIDE
typedef float Wide VECTOR_OF(32);
#define VECTOR Wide
#define NAME(x) wide_##x
#define TARGET __attribute__((target("avx2")))
#include "lines.h"
#endif
#else
#define ALWAYS_INLINE static inline
#define VECTOR float
#define NAME(x) narrow_##x
#define TARGET
#include "lines.h"
#endif

typedef struct {
    Line *forward, *inverse;
    Squares *squares;
} Loops;

static const Loops *loops_here(void)
{
    static const Loops narrow = {narrow_forward_line, narrow_inverse_line, narrow_squares};
#ifdef HAS_WIDE
    static const Loops wide = {wide_forward_line, wide_inverse_line, wide_squares};
    if (__builtin_cpu_supports("avx2"))
        return &wide;
#endif
    return &narrow;
}

/* ------------------------------------------------------------------ program */

typedef struct {
    Py_ssize_t height, width, row; /* row: floats from one row of a tile to the next */
    int num_stages;
    Stage stages[MOST_STAGES];
} Program;

/* A group that is valid and has `left` weights, or 0: how many of them it needs. */
static Py_ssize_t check_group(const int32_t *group, const int32_t *end, int32_t n,
                              uint64_t *outputs, Py_ssize_t left)
{
    if (end - group < 2 || group[0] < 1 || group[0] > MOST_GROUP || group[0] == 3 ||
        group[1] < 1 || group[1] > n || end - group - 2 < group[0] + group[1] ||
        left < group[0] * group[1])
        return 0;
    for (int32_t i = 0; i < group[0] + group[1]; i++) {
        int32_t place = group[2 + i];
        if (place < 0 || place >= n)
            return 0;
        if (i < group[0])
            *outputs |= (uint64_t)1 << place;
    }
    return group[0] * group[1];
}

/* NULL if a program is one, else why not. */
static const char *program_of(Program *p, Buffer numbers, Buffer weights)
{
    static const char wrong[] = "the stages of a transform are not valid";
    const int32_t *next = (int32_t *)numbers.data, *end = next + numbers.size / 4;
    const float *weight = (float *)weights.data;
    Py_ssize_t left = weights.size / 4;
    if (!holds(numbers, numbers.size / 4, 4) || !holds(weights, left, 4) || end - next < 3)
        return wrong;
    p->height = next[0];
    p->width = next[1];
    p->num_stages = next[2];
    next += 3;
    if (p->height < 1 || p->height > MOST_SIZE || p->width < 1 || p->width > MOST_SIZE ||
        p->num_stages < 0 || p->num_stages > MOST_STAGES)
        return wrong;
    /* Rows a multiple of 4 KiB apart would share few sets of the cache. */
    p->row = (p->width + 1) * LANES;
    for (int i = 0; i < p->num_stages; i++) {
        if (end - next < 5)
            return wrong;
        Stage *s = p->stages + i;
        *s = (Stage){next[0], next[1], next[2], next[3], next[4], 0, next + 5, weight};
        if (s->rows < 1 || s->rows > p->height || s->columns < 1 ||
            s->columns > p->width || s->folds < 0 || s->folds > 6 || s->num_groups < 1 ||
            s->num_groups > MOST_SIZE)
            return wrong;
        s->n = s->is_along_rows ? s->columns : s->rows;
        uint64_t outputs = 0;
        next += 5;
        for (int32_t g = 0; g < s->num_groups; g++) {
            Py_ssize_t num = check_group(next, end, s->n, &outputs, left);
            if (!num)
                return wrong;
            next += 2 + next[0] + next[1];
            weight += num;
            left -= num;
        }
        if (outputs != ~(uint64_t)0 >> (64 - s->n) || s->n % (1 << s->folds))
            return wrong;
    }
    return next == end && !left ? NULL : wrong;
}

static Py_ssize_t tile_size(const Program *p)
{
    return p->height * p->row;
}

/* Along rows, so many of a tile; or along its columns. */
static void apply(const Stage *s, Line *line, float *tile, Py_ssize_t row, float *room)
{
    if (s->is_along_rows)
        for (Py_ssize_t y = 0; y < s->rows; y++)
            line(s, tile + y * row, LANES, room);
    else
        for (Py_ssize_t x = 0; x < s->columns; x++)
            line(s, tile + x * LANES, row, room);
}

/* ------------------------------------------------------------------ forward */

/* Brings a row of planes to a tile. Four planes at a time: more, a power of two apart,
 * would share few sets of the cache. */
static void gather_row(const float *const planes[LANES], Py_ssize_t at, Py_ssize_t width,
                       float *row)
{
    for (int lane = 0; lane < LANES; lane += 4) {
        Py_ssize_t x = 0;
        for (; x + 4 <= width; x += 4) {
            const float *from[4];
            float *to[4];
            for (int i = 0; i < 4; i++) {
                from[i] = planes[lane + i] + at + x;
                to[i] = row + (x + i) * LANES + lane;
            }
            turn_four(from, to);
        }
        for (; x < width; x++)
            for (int i = lane; i < lane + 4; i++)
                row[x * LANES + i] = planes[i][at + x];
    }
}

/* What is told of coefficients: ends, and for each place a sum over its planes of
 * squares times their weights, in the lanes. */
typedef struct {
    float low[LANES], high[LANES], weights[LANES];
    float *sums;
} Told;

FOR_AVX2_TOO
static void tell_row(Told *restrict told, const float *restrict row, Py_ssize_t width,
                     float *restrict sums)
{
    float low[LANES], high[LANES];
    memcpy(low, told->low, sizeof low);
    memcpy(high, told->high, sizeof high);
    for (Py_ssize_t x = 0; x < width; x++)
        for (int i = 0; i < LANES; i++) {
            float c = row[x * LANES + i];
            low[i] = c < low[i] ? c : low[i];
            high[i] = c > high[i] ? c : high[i];
            sums[x * LANES + i] += c * c * told->weights[i];
        }
    memcpy(told->low, low, sizeof low);
    memcpy(told->high, high, sizeof high);
}

static void store_row(const float *row, Py_ssize_t width, float *out, Py_ssize_t num_planes,
                      Py_ssize_t num)
{
    if (num == LANES)
        for (Py_ssize_t x = 0; x < width; x++)
            memcpy(out + x * num_planes, row + x * LANES, LANES * sizeof *row);
    else
        for (Py_ssize_t x = 0; x < width; x++)
            memcpy(out + x * num_planes, row + x * LANES, (size_t)num * sizeof *row);
}

/* Brings sixteen planes to a tile, and transforms it. */
static void transform_tile(const Program *p, const float *const planes[LANES], float *tile)
{
    Line *line = loops_here()->forward;
    float *room = tile + tile_size(p);
    const Stage *stage = p->stages, *end = stage + p->num_stages;
    int is_whole = stage < end && stage->is_along_rows && stage->rows == p->height;
    for (Py_ssize_t y = 0; y < p->height; y++) {
        gather_row(planes, y * p->width, p->width, tile + y * p->row);
        if (is_whole)
            line(stage, tile + y * p->row, LANES, room);
    }
    for (stage += is_whole; stage < end; stage++)
        apply(stage, line, tile, p->row, room);
}

/* Sixteen planes or fewer; those that are missing are the first. */
static void forward_tile(const Program *p, const float *const planes[LANES],
                         Py_ssize_t num_planes, Py_ssize_t num, float *tile, float *out,
                         Told *told)
{
    transform_tile(p, planes, tile);
    for (Py_ssize_t y = 0; y < p->height; y++) {
        Py_ssize_t at = y * p->width;
        if (told)
            tell_row(told, tile + y * p->row, p->width, told->sums + at * LANES);
        store_row(tile + y * p->row, p->width, out + at * num_planes, num_planes, num);
    }
}

/* Sums over lanes, in their order, and the ends of all. */
static void tell_all(const Told *told, Py_ssize_t num_places, double *sums, float *ends)
{
    ends[0] = told->low[0];
    ends[1] = told->high[0];
    for (int i = 1; i < LANES; i++) {
        ends[0] = told->low[i] < ends[0] ? told->low[i] : ends[0];
        ends[1] = told->high[i] > ends[1] ? told->high[i] : ends[1];
    }
    for (Py_ssize_t s = 0; s < num_places; s++) {
        sums[s] = 0;
        for (int i = 0; i < LANES; i++)
            sums[s] += told->sums[s * LANES + i];
    }
}

/* Whether buffers hold planes, where each is, and coefficients. */
static const char *check_planes(const Program *p, Buffer planes, Buffer index,
                                Buffer coeffs, Buffer room, Py_ssize_t *num_planes)
{
    Py_ssize_t places = p->height * p->width, all = planes.size / 4 / places;
    Py_ssize_t num = *num_planes = index.size / 8;
    Py_ssize_t floats = tile_size(p) + (MOST_SIZE + places) * LANES;
    if (!holds(planes, all * places, 4) || !holds(index, num, 8) ||
        (num && coeffs.size / 4 / num != places) || !holds(coeffs, num * places, 4))
        return "planes and coefficients do not go together";
    if (room.size / 4 < floats || !holds(room, room.size / 4, 4))
        return "too little room for a tile";
    for (Py_ssize_t i = 0; i < num; i++) {
        int64_t plane = ((const int64_t *)index.data)[i];
        if (plane < 0 || plane >= all)
            return "the index names a plane that is none";
    }
    return NULL;
}

PyDoc_STRVAR(forward_doc,
"forward_planes(planes, index, numbers, weights, of_planes, room, coeffs, sums, ends)\n\n"
"See planes.forward in the module beside this one; without weights of planes, nothing is "
"told.");

static PyObject *forward_planes(PyObject *self, PyObject *args)
{
    PyObject *o[9];
    Buffer b[9];
    Program p;
    Told told;
    Py_ssize_t num_planes;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOOOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5],
                          &o[6], &o[7], &o[8]))
        return NULL;
    for (int i = 0; i < 9; i++)
        if (as_buffer(o[i], b + i, i > 4))
            return NULL;
    const char *wrong = program_of(&p, b[2], b[3]);
    if (!wrong)
        wrong = check_planes(&p, b[0], b[1], b[6], b[5], &num_planes);
    if (wrong)
        return refuse(wrong);
    Py_ssize_t num_places = p.height * p.width;
    int tells = b[4].size > 0;
    if (tells && (!holds(b[4], num_planes, 4) || !holds(b[7], num_places, 8) ||
                  !holds(b[8], 2, 4)))
        return refuse("what is told of coefficients has another size");
    Py_BEGIN_ALLOW_THREADS
    const int64_t *index = (int64_t *)b[1].data;
    float *tile = (float *)b[5].data, *coeffs = (float *)b[6].data;
    told.sums = tile + tile_size(&p) + MOST_SIZE * LANES;
    memset(told.sums, 0, (size_t)(tells ? num_places : 0) * LANES * sizeof *tile);
    for (int i = 0; i < LANES; i++)
        told.low[i] = told.high[i] = 0;
    for (Py_ssize_t k = 0; k < num_planes; k += LANES) {
        Py_ssize_t num = num_planes - k < LANES ? num_planes - k : LANES;
        const float *planes[LANES];
        for (Py_ssize_t i = 0; i < LANES; i++) {
            planes[i] = (float *)b[0].data + index[k + (i < num ? i : 0)] * num_places;
            told.weights[i] = tells && i < num ? ((float *)b[4].data)[k + i] : 0;
        }
        forward_tile(&p, planes, num_planes, num, tile, coeffs + k, tells ? &told : NULL);
    }
    if (tells)
        tell_all(&told, num_places, (double *)b[7].data, (float *)b[8].data);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ energies */

/* So many squares are summed in float32, the sums of them in float64. */
enum { RUN = 1024 };

static double energy_of(const float *values, Py_ssize_t num, Squares *squares)
{
    double energy = 0;
    for (Py_ssize_t i = 0; i < num; i += RUN) {
        float lanes[LANES];
        Py_ssize_t some = num - i < RUN ? num - i : RUN, whole = some / LANES * LANES;
        squares(values + i, whole, lanes);
        for (Py_ssize_t j = 0; j < some - whole; j++)
            lanes[j] += values[i + whole + j] * values[i + whole + j];
        double sum = 0;
        for (int j = 0; j < LANES; j++)
            sum += lanes[j];
        energy += sum;
    }
    return energy;
}

PyDoc_STRVAR(energies_doc,
"plane_energies(planes, num_places, energies)\n\n"
"See planes.energies in the module beside this one.");

static PyObject *plane_energies(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t num_places;
    Buffer planes, energies;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnO", &o[0], &num_places, &o[1]) ||
        as_buffer(o[0], &planes, 0) || as_buffer(o[1], &energies, 1))
        return NULL;
    Py_ssize_t num = energies.size / 8;
    if (num < 1 || num_places < 1 || planes.size / 4 / num != num_places ||
        !holds(planes, num * num_places, 4) || !holds(energies, num, 8))
        return refuse("planes and their energies do not go together");
    Py_BEGIN_ALLOW_THREADS
    const Loops *loops = loops_here();
    for (Py_ssize_t k = 0; k < num; k++)
        ((double *)energies.data)[k] =
            energy_of((float *)planes.data + k * num_places, num_places, loops->squares);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ inverse */

/* Undoes `gather_row` for the first `num` lanes. */
static void scatter_row(const float *row, Py_ssize_t width, Py_ssize_t at, Py_ssize_t num,
                        float *const planes[LANES])
{
    Py_ssize_t lane = 0;
    for (; lane + 4 <= num; lane += 4) {
        Py_ssize_t x = 0;
        for (; x + 4 <= width; x += 4) {
            const float *from[4];
            float *to[4];
            for (int i = 0; i < 4; i++) {
                from[i] = row + (x + i) * LANES + lane;
                to[i] = planes[lane + i] + at + x;
            }
            turn_four(from, to);
        }
        for (; x < width; x++)
            for (Py_ssize_t i = lane; i < lane + 4; i++)
                planes[i][at + x] = row[x * LANES + i];
    }
    for (; lane < num; lane++)
        for (Py_ssize_t x = 0; x < width; x++)
            planes[lane][at + x] = row[x * LANES + lane];
}

FOR_AVX2_TOO
static void clamp_row(float *row, Py_ssize_t num)
{
    for (Py_ssize_t i = 0; i < num; i++)
        row[i] = row[i] > 0 ? row[i] : 0;
}

static void load_row(const float *coeffs, Py_ssize_t width, Py_ssize_t num_planes,
                     Py_ssize_t num, float *row)
{
    for (Py_ssize_t x = 0; x < width; x++) {
        if (num == LANES) {
            memcpy(row + x * LANES, coeffs + x * num_planes, LANES * sizeof *row);
            continue;
        }
        memset(row + x * LANES, 0, LANES * sizeof *row);
        memcpy(row + x * LANES, coeffs + x * num_planes, (size_t)num * sizeof *row);
    }
}

static void inverse_tile(const Program *p, const float *coeffs, Py_ssize_t num_planes,
                         Py_ssize_t num, float *tile, float *const planes[LANES],
                         int clamps)
{
    Line *line = loops_here()->inverse;
    float *room = tile + tile_size(p);
    const Stage *stage = p->stages + p->num_stages, *first = p->stages;
    int is_whole = stage > first && first->is_along_rows && first->rows == p->height;
    for (Py_ssize_t y = 0; y < p->height; y++)
        load_row(coeffs + y * p->width * num_planes, p->width, num_planes, num,
                 tile + y * p->row);
    while (--stage >= first + is_whole)
        apply(stage, line, tile, p->row, room);
    for (Py_ssize_t y = 0; y < p->height; y++) {
        float *row = tile + y * p->row;
        if (is_whole)
            line(first, row, LANES, room);
        if (clamps)
            clamp_row(row, p->width * LANES);
        scatter_row(row, p->width, y * p->width, num, planes);
    }
}

PyDoc_STRVAR(inverse_doc,
"inverse_planes(coeffs, index, numbers, weights, clamps, room, planes)\n\n"
"See planes.inverse in the module beside this one.");

static PyObject *inverse_planes(PyObject *self, PyObject *args)
{
    PyObject *o[6];
    Buffer b[6];
    Program p;
    Py_ssize_t num_planes;
    int clamps;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOpOO", &o[0], &o[1], &o[2], &o[3], &clamps, &o[4],
                          &o[5]))
        return NULL;
    for (int i = 0; i < 6; i++)
        if (as_buffer(o[i], b + i, i > 3))
            return NULL;
    const char *wrong = program_of(&p, b[2], b[3]);
    if (!wrong)
        wrong = check_planes(&p, b[5], b[1], b[0], b[4], &num_planes);
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    const int64_t *index = (int64_t *)b[1].data;
    Py_ssize_t num_places = p.height * p.width;
    for (Py_ssize_t k = 0; k < num_planes; k += LANES) {
        Py_ssize_t num = num_planes - k < LANES ? num_planes - k : LANES;
        float *planes[LANES];
        for (Py_ssize_t i = 0; i < LANES; i++)
            planes[i] = (float *)b[5].data + index[k + (i < num ? i : 0)] * num_places;
        inverse_tile(&p, (float *)b[0].data + k, num_planes, num, (float *)b[4].data,
                     planes, clamps);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ spectra */

FOR_AVX2_TOO
static void scale_row(float *restrict row, Py_ssize_t width, const float *restrict scales)
{
    for (Py_ssize_t x = 0; x < width; x++)
        for (int i = 0; i < LANES; i++)
            row[x * LANES + i] *= scales[x];
}

PyDoc_STRVAR(spectra_doc,
"plane_spectra(planes, numbers, weights, scales, room, spectra)\n\n"
"See planes.spectra in the module beside this one.");

static PyObject *plane_spectra(PyObject *self, PyObject *args)
{
    PyObject *o[6];
    Buffer b[6];
    Program p;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5]))
        return NULL;
    for (int i = 0; i < 6; i++)
        if (as_buffer(o[i], b + i, i > 3))
            return NULL;
    const char *wrong = program_of(&p, b[1], b[2]);
    if (wrong)
        return refuse(wrong);
    Py_ssize_t places = p.height * p.width, num_planes = b[0].size / 4 / places;
    Py_ssize_t floats = tile_size(&p) + MOST_SIZE * LANES;
    if (!holds(b[0], num_planes * places, 4) || !holds(b[5], num_planes * places, 4) ||
        !holds(b[3], places, 4))
        return refuse("planes, scales and spectra do not go together");
    if (b[4].size / 4 < floats || !holds(b[4], b[4].size / 4, 4))
        return refuse("too little room for a tile");
    Py_BEGIN_ALLOW_THREADS
    float *tile = (float *)b[4].data, *to[LANES];
    const float *from[LANES];
    for (Py_ssize_t k = 0; k < num_planes; k += LANES) {
        Py_ssize_t num = num_planes - k < LANES ? num_planes - k : LANES;
        for (Py_ssize_t i = 0; i < LANES; i++) {
            Py_ssize_t at = (k + (i < num ? i : 0)) * places;
            from[i] = (const float *)b[0].data + at;
            to[i] = (float *)b[5].data + at;
        }
        transform_tile(&p, from, tile);
        for (Py_ssize_t y = 0; y < p.height; y++) {
            float *row = tile + y * p.row;
            scale_row(row, p.width, (const float *)b[3].data + y * p.width);
            scatter_row(row, p.width, y * p.width, num, to);
        }
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef planes_methods[] = {
    {"plane_spectra", plane_spectra, METH_VARARGS, spectra_doc},
    {"forward_planes", forward_planes, METH_VARARGS, forward_doc},
    {"inverse_planes", inverse_planes, METH_VARARGS, inverse_doc},
    {"plane_energies", plane_energies, METH_VARARGS, energies_doc},
    {NULL, NULL, 0, NULL},
};
