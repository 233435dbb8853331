/* Times MPI_Allreduce of float32 sums in place, one process a rank, the way esync-bench times esync.
 *
 *     mpicc -O2 allreduce.c -o allreduce
 *     mpirun -n 4 ./allreduce --bytes 4,1024,1048576 --seconds 0.3
 *
 * For each size: one checked call, some untimed ones, timed ones until the seconds are used up, one more checked call. Before
 * every timed call, outside the timed part, the vector is rewritten and all ranks meet in a barrier; the time of a call is that
 * of its slowest rank. Rank 0 prints one JSON object a line. The exit status is 1 if an element was wrong, 2 for bad arguments.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SIZES = 64, PERIOD = 1021 };

struct arguments {
    size_t bytes[MOST_SIZES];
    int sizes;
    double seconds;  /* of timed calls, for each size */
    int iterations;  /* at most */
    int warm_up;
    const char *label; /* goes into the output as it is */
};

static void usage(const char *why)
{
    fprintf(stderr, "allreduce: %s\nusage: allreduce --bytes N,N,… [--seconds S] [--iterations N] [--warm-up N] [--label TEXT]\n", why);
    MPI_Abort(MPI_COMM_WORLD, 2);
}

static struct arguments parse(int argc, char **argv)
{
    struct arguments arguments = {.seconds = 0.3, .iterations = 2000, .warm_up = 3, .label = ""};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value)
            usage("a flag has no value");
        if (!strcmp(argv[i], "--bytes")) {
            char *rest = argv[i + 1];
            for (char *word = strtok(rest, ","); word; word = strtok(NULL, ",")) {
                char *end;
                unsigned long long bytes = strtoull(word, &end, 10);
                if (*end || bytes == 0 || bytes % sizeof(float) || arguments.sizes == MOST_SIZES)
                    usage("--bytes wants up to 64 multiples of 4, separated by commas");
                arguments.bytes[arguments.sizes++] = bytes;
            }
        } else if (!strcmp(argv[i], "--seconds")) {
            arguments.seconds = atof(value);
        } else if (!strcmp(argv[i], "--iterations")) {
            arguments.iterations = atoi(value);
        } else if (!strcmp(argv[i], "--warm-up")) {
            arguments.warm_up = atoi(value);
        } else if (!strcmp(argv[i], "--label")) {
            arguments.label = value;
        } else {
            usage("a flag is unknown");
        }
    }
    if (arguments.sizes == 0 || arguments.iterations < 1 || arguments.warm_up < 0)
        usage("--bytes is missing, or a number makes no sense");
    return arguments;
}

/* Small integers, whose sums are exact in any order; a period that is prime, so that a misplaced part is noticed. */
static float contribution(int rank, size_t index)
{
    return (float)((index % PERIOD * 7 + (size_t)rank * 13) % 61);
}

static void reduce_in_place(float *vector, size_t count)
{
    /* The sizes of this comparison stay far below 2³¹ elements. */
    MPI_Allreduce(MPI_IN_PLACE, vector, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

/* Wrong elements of one call, on all ranks. */
static long count_wrong(float *vector, const float *input, size_t count, int ranks)
{
    memcpy(vector, input, count * sizeof *vector);
    reduce_in_place(vector, count);
    long wrong = 0;
    float expected[PERIOD];
    for (size_t i = 0; i < PERIOD; i++) {
        expected[i] = 0;
        for (int rank = 0; rank < ranks; rank++)
            expected[i] += contribution(rank, i);
    }
    for (size_t i = 0, place = 0; i < count; i++, place = place + 1 == PERIOD ? 0 : place + 1)
        wrong += vector[i] != expected[place];
    MPI_Allreduce(MPI_IN_PLACE, &wrong, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    return wrong;
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* By nearest rank, in microseconds, as esync-bench does it. */
static double percentile(const double *sorted, int count, int percent)
{
    int nearest = (percent * count + 99) / 100;
    return sorted[nearest > 0 ? nearest - 1 : 0] * 1e6;
}

/* Timed calls into `seconds`; returns their number. Ranks go on together: the first one's clock counts. */
static int time_calls(float *vector, const float *input, size_t count, const struct arguments *arguments, double *seconds)
{
    double begun = MPI_Wtime();
    int done = 0, batch = 1;
    while (done < arguments->iterations) {
        double before = MPI_Wtime();
        for (int i = 0; i < batch && done < arguments->iterations; i++, done++) {
            memcpy(vector, input, count * sizeof *vector);
            MPI_Barrier(MPI_COMM_WORLD);
            double started = MPI_Wtime();
            reduce_in_place(vector, count);
            seconds[done] = MPI_Wtime() - started;
            /* Where ranks take turns on the cores, one that is not back yet must not wait for the copying of others. */
            MPI_Barrier(MPI_COMM_WORLD);
        }
        double now = MPI_Wtime();
        double left = arguments->seconds - (now - begun), each = (now - before) / batch;
        /* A quarter of what is left, so that the last batches end close to the budget. */
        double next = left <= 0 ? 0 : left / each / 4;
        batch = next < 1 ? (left > 0) : next > 1000 ? 1000 : (int)next;
        MPI_Bcast(&batch, 1, MPI_INT, 0, MPI_COMM_WORLD);
        if (batch == 0)
            break;
    }
    MPI_Allreduce(MPI_IN_PLACE, seconds, done, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return done;
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    struct arguments arguments = parse(argc, argv);
    double *seconds = malloc((size_t)arguments.iterations * sizeof *seconds);
    long all_wrong = 0;
    for (int size = 0; size < arguments.sizes; size++) {
        size_t bytes = arguments.bytes[size], count = bytes / sizeof(float);
        float *vector = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        float *input = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (!seconds || !vector || !input) {
            fprintf(stderr, "allreduce: rank %d: no memory for %zu bytes\n", rank, bytes);
            MPI_Abort(MPI_COMM_WORLD, 3);
        }
        for (size_t i = 0; i < count; i++)
            input[i] = contribution(rank, i);
        long wrong = count_wrong(vector, input, count, ranks);
        for (int i = 0; i < arguments.warm_up; i++)
            reduce_in_place(vector, count);
        int iterations = time_calls(vector, input, count, &arguments, seconds);
        wrong += count_wrong(vector, input, count, ranks);
        all_wrong += wrong;
        qsort(seconds, (size_t)iterations, sizeof *seconds, ascending);
        if (rank == 0) {
            printf("{\"label\": \"%s\", \"ranks\": %d, \"bytes\": %zu, \"median_us\": %.3f, \"min_us\": %.3f, \"p95_us\": %.3f, "
                   "\"iterations\": %d, \"wrong\": %ld}\n",
                   arguments.label, ranks, bytes, percentile(seconds, iterations, 50), seconds[0] * 1e6,
                   percentile(seconds, iterations, 95), iterations, wrong);
            fflush(stdout);
        }
        free(vector);
        free(input);
    }
    free(seconds);
    MPI_Finalize();
    return all_wrong != 0;
}
