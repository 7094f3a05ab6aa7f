/* The load of datagrams: one process, one thread; many datagrams a system call, so that the server is what is measured.
 *
 *     udp_load MODE -p PORT [-c SOCKETS] [-n WINDOW] [-s SIZE] [-t SECONDS] [-w WARM_UP] [-r RATE] [-S SERVER_PID]
 *
 * echo     each socket keeps WINDOW datagrams in flight: what comes back is sent anew
 * ingest   sends as fast as it can, or RATE a second, WINDOW at a time; waits for no answer, but, in the end, until the
 *          server is at rest
 *
 * Every byte echoed is compared with what was sent. A datagram without an answer for PATIENCE is lost, and another is
 * sent in its place, so all waiting is bounded. Prints one line of JSON: times in microseconds, `cpu` is this
 * process's, `server_cpu` the server's within the measured time. `messages` are those that came back; with `ingest`,
 * those sent less those that the kernel says it dropped at the server's socket, and `warmed` the same of the warm-up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/udp.h>
#include <sys/epoll.h>

#include "program.h"

enum { SOCKETS = 1024, WINDOW = 64, LARGEST = 65507, LETTERS = 251, HEAD = 8, BUFFER = 4 << 20 };
#define PATIENCE (SECOND / 4)
#define LOOK (SECOND / 20)      /* how often what is lost is looked for */
#define REST_LIMIT (5 * SECOND) /* to wait for the server to be at rest */

struct head { /* of each datagram */
    uint32_t number;
    uint16_t socket, slot;
};

struct slot {
    uint32_t number;
    uint64_t sent;
    char *data;
};

struct source {
    int fd;
    unsigned id;
    struct slot slots[WINDOW];
};

static int ingest, port, poll_fd;
static size_t size = 64, sockets = 16, window = 8;
static double seconds = 1, warm_up = 0.1, rate;
static pid_t server_pid;

static struct source *sources;
static char *answers[WINDOW];
static uint64_t messages, lost, late, sent, errors, ended;
static int measuring;
static double sending; /* seconds */
static char first_error[128], *burst;

static void fail(const char *what, int reason) {
    errors++;
    if (!*first_error)
        snprintf(first_error, sizeof first_error, "%s%s%s", what, reason ? ": " : "", reason ? strerror(reason) : "");
}

/* -- opening -- */

static void open_source(struct source *s, unsigned id) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    int buffer = BUFFER;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->id = id;
    s->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0 || connect(s->fd, (void *)&server, sizeof server) < 0)
        die("socket");
    setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer); /* what is lost is to be lost at the server */
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, s->fd, &event) < 0)
        die("epoll_ctl");
    for (unsigned i = 0; i < window; i++) {
        s->slots[i].data = room(size);
        for (size_t at = HEAD; at < size; at++)
            s->slots[i].data[at] = (char)('a' + (id * window + i + at) % LETTERS % 26);
    }
}

/* -- echo -- */

/* Send the datagrams of these slots, each with its next number. One that cannot be sent is lost, and so sent later. */
static void send_anew(struct source *s, const unsigned *numbers, unsigned count, uint64_t time) {
    struct mmsghdr packets[WINDOW] = {0};
    struct iovec parts[WINDOW];
    for (unsigned i = 0; i < count; i++) {
        struct slot *slot = &s->slots[numbers[i]];
        struct head head = {++slot->number, (uint16_t)s->id, (uint16_t)numbers[i]};
        memcpy(slot->data, &head, sizeof head);
        slot->sent = time;
        parts[i] = (struct iovec){slot->data, size};
        packets[i].msg_hdr.msg_iov = &parts[i];
        packets[i].msg_hdr.msg_iovlen = 1;
    }
    if (sendmmsg(s->fd, packets, count, 0) < 0 && errno != EAGAIN)
        fail("send", errno);
}

/* The slot that an answer frees, or -1. */
static int freed(struct source *s, const char *data, size_t length, uint64_t time) {
    struct head head;
    memcpy(&head, data, sizeof head);
    struct slot *slot = &s->slots[head.slot % WINDOW];
    if (length == size && head.socket == s->id && head.slot < window && head.number < slot->number) {
        late++;
        return -1;
    }
    if (length != size || memcmp(data, slot->data, size)) {
        fail("wrong bytes", 0);
        return -1;
    }
    if (measuring) {
        took(time - slot->sent);
        messages++;
    }
    return head.slot;
}

static void take_answers(struct source *s) {
    struct mmsghdr packets[WINDOW] = {0};
    struct iovec parts[WINDOW];
    unsigned numbers[WINDOW], free = 0;
    for (unsigned i = 0; i < window; i++) {
        parts[i] = (struct iovec){answers[i], size + 1}; /* one more: a server that sends too much is wrong, too */
        packets[i].msg_hdr.msg_iov = &parts[i];
        packets[i].msg_hdr.msg_iovlen = 1;
    }
    int count = recvmmsg(s->fd, packets, (unsigned)window, MSG_DONTWAIT, NULL);
    if (count < 0 && errno != EAGAIN)
        fail("recv", errno);
    uint64_t time = now();
    for (int i = 0; i < count; i++) {
        int slot = freed(s, answers[i], packets[i].msg_len, time);
        if (slot >= 0)
            numbers[free++] = (unsigned)slot;
    }
    if (free)
        send_anew(s, numbers, free, time);
}

static void replace_what_is_lost(uint64_t time) {
    for (size_t i = 0; i < sockets; i++) {
        unsigned numbers[WINDOW], count = 0;
        for (unsigned slot = 0; slot < window; slot++)
            if (time - sources[i].slots[slot].sent > PATIENCE)
                numbers[count++] = slot;
        lost += measuring ? count : 0;
        if (count)
            send_anew(&sources[i], numbers, count, time);
    }
}

static void run_echo(double length) {
    uint64_t time = now(), end = time + (uint64_t)(length * 1e9), looked = time;
    while (time < end) {
        struct epoll_event ready[64];
        int found = epoll_wait(poll_fd, ready, 64, 20);
        for (int i = 0; i < found; i++)
            take_answers(ready[i].data.ptr);
        time = now();
        if (time - looked > LOOK)
            replace_what_is_lost(looked = time);
    }
    ended = time;
}

static void begin_echo(void) {
    for (size_t i = 0; i < sockets; i++) {
        unsigned numbers[WINDOW];
        for (unsigned slot = 0; slot < window; slot++)
            numbers[slot] = slot;
        send_anew(&sources[i], numbers, (unsigned)window, now());
    }
}

/* -- ingest -- */

/* The server's socket as the kernel sees it. */
struct queue {
    unsigned waiting;
    unsigned long long dropped; /* as there was no room */
};

static struct queue look_at_queue(void) {
    char line[512];
    struct queue found = {0}, this;
    unsigned local, remote;
    FILE *table = fopen("/proc/net/udp", "r");
    while (table && fgets(line, sizeof line, table))
        if (sscanf(line, "%*d: %*x:%x %*x:%x %*x %*x:%x %*x:%*x %*x %*u %*d %*u %*d %*x %llu", &local, &remote,
                   &this.waiting, &this.dropped) == 4 && local == (unsigned)port && !remote)
            found = this;
    if (table)
        fclose(table);
    return found;
}

/* Until nothing waits and the server has taken less than a tenth of a processor for 5 ms: the time when they began. */
static uint64_t wait_for_rest(void) {
    struct timespec pause = {.tv_nsec = 5000000};
    uint64_t time = now(), end = time + REST_LIMIT;
    for (double before = cpu_of(server_pid); time < end;) {
        nanosleep(&pause, NULL);
        double after = cpu_of(server_pid);
        uint64_t later = now();
        if (!look_at_queue().waiting && after - before < (double)(later - time) / 1e10)
            break;
        before = after;
        time = later;
    }
    return time;
}

/* One call for many datagrams, which the kernel cuts apart: sendmmsg(2) is slower than some servers. */
static void prepare_bursts(void) {
    int one = (int)size;
    burst = room(size * window);
    memset(burst, 'x', size * window);
    for (size_t i = 0; i < sockets; i++)
        if (setsockopt(sources[i].fd, SOL_UDP, UDP_SEGMENT, &one, sizeof one) < 0)
            die("UDP_SEGMENT");
}

static void flood(double length) {
    uint64_t start = now(), end = start + (uint64_t)(length * 1e9), turn = 0;
    for (uint64_t time = start; time < end; time = now()) {
        if (rate > 0 && (double)(turn * window) >= rate * (double)(time - start) / SECOND)
            continue;
        if (send(sources[turn++ % sockets].fd, burst, size * window, 0) > 0)
            sent += window;
        else if (errno != EAGAIN)
            fail("send", errno);
    }
    sending = (double)(now() - start) / 1e9;
}

static void run_ingest(double length) {
    uint64_t before = look_at_queue().dropped;
    sent = 0;
    flood(length);
    ended = wait_for_rest();
    lost = look_at_queue().dropped - before;
    messages = sent - lost;
}

/* -- both -- */

static void options(int count, char **arguments) {
    ingest = count > 1 && !strcmp(arguments[1], "ingest");
    int known = ingest || (count > 1 && !strcmp(arguments[1], "echo"));
    for (int option; known && (option = getopt(count - 1, arguments + 1, "p:c:n:s:t:w:r:S:")) != -1;) {
        double value = atof(optarg ? optarg : "");
        switch (option) {
        case 'p': port = (int)value; break;
        case 'c': sockets = (size_t)value; break;
        case 'n': window = (size_t)value; break;
        case 's': size = (size_t)value; break;
        case 't': seconds = value; break;
        case 'w': warm_up = value; break;
        case 'r': rate = value; break;
        case 'S': server_pid = (pid_t)value; break;
        default: known = 0;
        }
    }
    if (!known || port <= 0 || !sockets || sockets > SOCKETS || !window || window > WINDOW || size < HEAD ||
        size > LARGEST || seconds <= 0 || seconds > 60 || warm_up < 0 || warm_up > 60) {
        fprintf(stderr, "udp_load: see the head of udp_load.c for what it takes\n");
        exit(2);
    }
}

static void prepare(int count, char **arguments) {
    options(count, arguments);
    alarm(200); /* whatever happens */
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    sources = room(sockets * sizeof *sources);
    for (size_t i = 0; i < sockets; i++)
        open_source(&sources[i], (unsigned)i);
    for (size_t i = 0; i < window; i++)
        answers[i] = room(size + 1);
    ingest ? prepare_bursts() : begin_echo();
}

int main(int count, char **arguments) {
    prepare(count, arguments);
    void (*run)(double) = ingest ? run_ingest : run_echo;
    run(warm_up);
    uint64_t start = now(), warmed = messages;
    double own = cpu_of(getpid()), servers = cpu_of(server_pid);
    measuring = 1;
    run(seconds);
    own = cpu_of(getpid()) - own;
    servers = cpu_of(server_pid) - servers;
    double length = (double)(ended - start) / 1e9;
    printf("{\"rate\": %.1f, \"messages\": %llu, \"seconds\": %.6f, \"lost\": %llu, \"late\": %llu, ",
           (double)messages / length, (unsigned long long)messages, length, (unsigned long long)lost,
           (unsigned long long)late);
    printf("\"cpu\": %.6f, \"server_cpu\": %.6f, \"sent\": %llu, \"sending\": %.6f, \"warmed\": %llu, ", own, servers,
           (unsigned long long)sent, sending, (unsigned long long)warmed);
    printf("\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f, ", percentile(0.5), percentile(0.9),
           percentile(0.99), (double)longest / 1000);
    printf("\"stalled\": 0, \"errors\": %llu, \"first_error\": \"%s\"}\n", (unsigned long long)errors, first_error);
    return 0;
}
