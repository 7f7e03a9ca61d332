/* Lines of a tile by the stages of a transform. Included once for each width of
 * vectors: VECTOR is a type of floats, NAME(x) tells its functions from others', TARGET
 * is an attribute. Sums are in the order of taps, and nothing is contracted, so all
 * widths give the same bits.
 */

/* Two vectors hide what an addition takes; a tile has so many floats of one place. */
enum { NAME(PAIR) = 2 * (int)(sizeof(VECTOR) / sizeof(float)) };

/* `num` outputs that need the same inputs, for a pair of vectors. */
TARGET ALWAYS_INLINE void NAME(sum_group)(const int num, const int32_t *group,
                                          const float *weights, const float *from,
                                          Py_ssize_t step, float *to, Py_ssize_t to_step)
{
    const int32_t num_taps = group[1], *outputs = group + 2, *taps = outputs + num;
    const VECTOR *x = (const VECTOR *)(from + taps[0] * step);
    VECTOR first[MOST_GROUP], second[MOST_GROUP];
    for (int i = 0; i < num; i++) {
        first[i] = x[0] * weights[i];
        second[i] = x[1] * weights[i];
    }
    for (int32_t t = 1; t < num_taps; t++) {
        x = (const VECTOR *)(from + taps[t] * step);
        weights += num;
        for (int i = 0; i < num; i++) {
            first[i] += x[0] * weights[i];
            second[i] += x[1] * weights[i];
        }
    }
    for (int i = 0; i < num; i++) {
        VECTOR *y = (VECTOR *)(to + outputs[i] * to_step);
        y[0] = first[i];
        y[1] = second[i];
    }
}

TARGET static void NAME(sum_groups)(const Stage *s, const float *from, Py_ssize_t step,
                                    float *to, Py_ssize_t to_step)
{
    for (int lane = 0; lane < LANES; lane += NAME(PAIR)) {
        const int32_t *group = s->groups;
        const float *weights = s->weights;
        for (int32_t i = 0; i < s->num_groups; i++) {
            const float *x = from + lane;
            float *y = to + lane;
            if (group[0] == 4)
                NAME(sum_group)(4, group, weights, x, step, y, to_step);
            else if (group[0] == 2)
                NAME(sum_group)(2, group, weights, x, step, y, to_step);
            else
                NAME(sum_group)(1, group, weights, x, step, y, to_step);
            weights += group[0] * group[1];
            group += 2 + group[0] + group[1];
        }
    }
}

/* Sums and differences of what lies as far from both ends of `n`. */
TARGET ALWAYS_INLINE void NAME(fold)(const float *from, Py_ssize_t step, float *to,
                                     Py_ssize_t to_step, int32_t n)
{
    for (int32_t j = 0; j < n / 2; j++) {
        const VECTOR *one = (const VECTOR *)(from + j * step);
        const VECTOR *other = (const VECTOR *)(from + (n - 1 - j) * step);
        VECTOR *sum = (VECTOR *)(to + j * to_step);
        VECTOR *difference = (VECTOR *)(to + (n - 1 - j) * to_step);
        for (int i = 0; i < 2 * LANES / NAME(PAIR); i++) {
            VECTOR a = one[i], b = other[i];
            sum[i] = a + b;
            difference[i] = a - b;
        }
    }
}

/* A line of a tile, in place; `room` is for one line. */
TARGET static void NAME(forward_line)(const Stage *s, float *line, Py_ssize_t step,
                                      float *room)
{
    if (s->folds)
        NAME(fold)(line, step, room, LANES, s->n);
    else
        for (int32_t j = 0; j < s->n; j++)
            memcpy(room + j * LANES, line + j * step, LANES * sizeof *line);
    for (int32_t f = 1; f < s->folds; f++)
        NAME(fold)(room, LANES, room, LANES, s->n >> f);
    NAME(sum_groups)(s, room, LANES, line, step);
}

TARGET static void NAME(inverse_line)(const Stage *s, float *line, Py_ssize_t step,
                                      float *room)
{
    NAME(sum_groups)(s, line, step, room, LANES);
    for (int32_t f = s->folds - 1; f > 0; f--)
        NAME(fold)(room, LANES, room, LANES, s->n >> f);
    if (s->folds)
        NAME(fold)(room, LANES, line, step, s->n);
    else
        for (int32_t j = 0; j < s->n; j++)
            memcpy(line + j * step, room + j * LANES, LANES * sizeof *line);
}

/* Sums of squares of each sixteenth value, of a multiple of sixteen. */
TARGET static void NAME(squares)(const float *values, Py_ssize_t num, float *lanes)
{
    for (int lane = 0; lane < LANES; lane += NAME(PAIR)) {
        VECTOR *sums = (VECTOR *)(lanes + lane);
        VECTOR first = {0}, second = {0};
        for (Py_ssize_t i = lane; i < num; i += LANES) {
            const VECTOR *x = (const VECTOR *)(values + i);
            first += x[0] * x[0];
            second += x[1] * x[1];
        }
        sums[0] = first;
        sums[1] = second;
    }
}

#undef VECTOR
#undef NAME
#undef TARGET
