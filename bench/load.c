/* The load: one process, one thread, one epoll set, so that the server and not the client is what is measured.
 *
 *     load MODE -p PORT [-c CONNECTIONS] [-i IDLE] [-s SIZE] [-t SECONDS] [-w WARM_UP] [-r RATE] [-S SERVER_PID]
 *          [-x VERSION]
 *
 * echo     each connection sends a message, waits for the echo, and so on
 * lines    the same; a message is a line
 * connect  connect, send, wait for the echo, close; so many at a time; with -x 1 or 2, a PROXY header goes first
 * http     GET on connections that are kept; the answer's Content-Length says where it ends
 * idle     echo, beside IDLE connections that had one echo and wait; the server's memory before and with them
 * ttfb     messages at RATE a second over all connections, beside a neighbour that reads a stream as fast as it can
 *
 * Every byte echoed is compared with what was sent. All waiting is bounded. Prints one line of JSON: times in
 * microseconds, `cpu` is this process's, `server_cpu` the server's within the measured time, memory in KiB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>

#include "program.h"

enum { EVENTS = 512, VARIANTS = 251, OPENING = 64, HEAD = 4096, STREAM_READ = 262144 };
#define OPEN_LIMIT (20 * SECOND)             /* to open all connections */
#define DRAIN_LIMIT (2 * SECOND)             /* to wait for what is still on its way */
#define STALLED SECOND                       /* an answer that takes longer has not come */
#define FORGOTTEN (SECOND / 10)              /* ttfb: counts with its age at the end, though never answered */

enum mode { ECHO, LINES, CONNECT, HTTP, IDLE, TTFB };
static const char *const MODES[] = {"echo", "lines", "connect", "http", "idle", "ttfb"};
enum state { CLOSED, SENDING, WAITING, QUIET, STREAMING };

struct conn {
    int fd;
    enum state state;
    unsigned id, count;
    size_t sent, got;
    uint64_t began;
    const char *message;
    char *head; /* http: the answer's head as far as it has come; else unused */
    size_t head_size, body_left;
};

static enum mode mode;
static int port, poll_fd;
static size_t size = 64, active = 1, idle;
static double seconds = 1, warm_up = 0.1, rate = 2000;
static pid_t server_pid;

static char *messages, *buffer;
static size_t stride;
static uint64_t answered, errors, streamed;
static size_t opened, failed, in_flight, lost;
static int opening, draining, measuring;
static char first_error[128];
static const char *header; /* of the PROXY protocol */
static size_t header_size;

/* -- messages -- */

static const char HEADER_1[] = "PROXY TCP4 203.0.113.195 198.51.100.17 56324 443\r\n";
static const char HEADER_2[] = "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\xc3\xc6\x33\x64\x11\xdc\x04\x01\xbb";

static void choose_header(int version) {
    header = version == 1 ? HEADER_1 : HEADER_2;
    header_size = (version == 1 ? sizeof HEADER_1 : sizeof HEADER_2) - 1;
}

static void make_messages(void) {
    static const char get[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: load\r\n\r\n";
    if (mode == HTTP) {
        messages = strdup(get);
        size = sizeof get - 1;
        return;
    }
    stride = mode == LINES ? size : 1; /* a shifted window is another message already, and keeps the caches */
    size_t whole = VARIANTS * stride + size;
    messages = room(whole);
    write_letters(messages, whole);
    for (size_t i = size - 1; mode == LINES && i < whole; i += size)
        messages[i] = '\n';
}

/* -- one connection -- */

static void drop(struct conn *c) {
    if (c->state == SENDING || c->state == WAITING)
        in_flight--;
    close(c->fd);
    c->state = CLOSED;
}

static void fail(struct conn *c, const char *what) {
    int reason = errno;
    drop(c);
    errors++;
    if (!*first_error)
        snprintf(first_error, sizeof first_error, "%s%s%s", what, reason ? ": " : "", reason ? strerror(reason) : "");
    failed += (size_t)opening;
    lost++;
}

/* In one go with the message, as far as the kernel takes them: it has room for both when a connection begins. */
static ssize_t send_with_header(const struct conn *c) {
    struct iovec parts[] = {{(void *)header, header_size}, {(void *)c->message, size}};
    struct msghdr both = {.msg_iov = parts, .msg_iovlen = 2};
    ssize_t n = sendmsg(c->fd, &both, MSG_NOSIGNAL);
    return n < 0 ? n : n - (ssize_t)header_size;
}

static void push(struct conn *c) {
    while (c->sent < size) {
        ssize_t n = header && !c->sent ? send_with_header(c)
                                       : send(c->fd, c->message + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return; /* connecting still, or the buffer is full: the set tells when it may go on */
        if (n < 0) {
            fail(c, "send");
            return;
        }
        c->sent += (size_t)n;
    }
    c->state = WAITING;
}

static void begin(struct conn *c, uint64_t time) {
    c->message = messages + (c->id * 7 + c->count++) % VARIANTS * stride;
    c->sent = c->got = c->head_size = 0;
    c->began = time;
    c->state = SENDING;
    in_flight++;
    push(c);
}

static void open_one(struct conn *c) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    uint64_t time = now();
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fail(c, "socket");
        return;
    }
    if (mode == CONNECT)
        choose_source(c->fd, c->count);
    if (mode == HTTP && !c->head)
        c->head = room(HEAD);
    int refused = connect(c->fd, (void *)&server, sizeof server) < 0 && errno != EINPROGRESS;
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
    if (refused)
        fail(c, "connect");
    else
        begin(c, time);
}

static void complete(struct conn *c) {
    uint64_t time = now();
    in_flight--;
    c->state = QUIET;
    if (measuring) {
        took(time - c->began);
        answered++;
    }
    if (opening) {
        opened++;
    } else if (mode == CONNECT) {
        drop(c);
        if (!draining)
            open_one(c);
    } else if (mode != TTFB && !draining) {
        begin(c, time);
    }
}

static void pull(struct conn *c) {
    size_t left = size - c->got;
    ssize_t n = recv(c->fd, buffer, left + 1, 0); /* one more: a server that sends too much is wrong, too */
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        errno = n < 0 ? errno : 0;
        fail(c, n < 0 ? "recv" : "closed by the server");
        return;
    }
    if ((size_t)n > left || c->got + (size_t)n > c->sent || memcmp(buffer, c->message + c->got, (size_t)n)) {
        errno = 0;
        fail(c, "wrong bytes");
        return;
    }
    c->got += (size_t)n;
    if (c->got == size)
        complete(c);
}

/* The size of the answer's body once its head is there; -1 while it is not, -2 if it cannot be one. */
static long body_size(struct conn *c, size_t *rest) {
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n"), *length = strcasestr(c->head, "\r\nContent-Length:");
    if (!end)
        return c->head_size == HEAD - 1 ? -2 : -1;
    if (strncmp(c->head, "HTTP/1.1 200 ", 13) || !length || length > end)
        return -2;
    *rest = c->head_size - (size_t)(end + 4 - c->head);
    return atol(length + 17);
}

static void pull_answer(struct conn *c) {
    int in_head = c->got == 0; /* 1 once the head is there */
    char *place = in_head ? c->head + c->head_size : buffer;
    ssize_t n = recv(c->fd, place, in_head ? HEAD - 1 - c->head_size : STREAM_READ, 0);
    size_t rest = 0;
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        errno = n < 0 ? errno : 0;
        fail(c, n < 0 ? "recv" : "closed by the server");
        return;
    }
    size_t come = (size_t)n;
    if (in_head) {
        c->head_size += come;
        long body = body_size(c, &rest);
        if (body == -1)
            return;
        c->got = 1;
        come = body < 0 ? 1 : rest;
        c->body_left = body < 0 ? 0 : (size_t)body;
    }
    if (come > c->body_left) {
        errno = 0;
        fail(c, "wrong answer");
        return;
    }
    c->body_left -= come;
    if (!c->body_left)
        complete(c);
    else if (in_head)
        pull_answer(c); /* the edge may stand for the body, too */
}

static void read_stream(struct conn *c) {
    ssize_t n = recv(c->fd, buffer, STREAM_READ, 0);
    if (n > 0)
        streamed += measuring ? (uint64_t)n : 0;
    else if (n == 0 || errno != EAGAIN)
        fail(c, "stream");
}

/* -- all of them -- */

static void turn(int milliseconds) {
    struct epoll_event ready[EVENTS];
    int found = epoll_wait(poll_fd, ready, EVENTS, milliseconds);
    for (int i = 0; i < found; i++) {
        struct conn *c = ready[i].data.ptr;
        if (c->state == STREAMING) {
            read_stream(c);
            continue;
        }
        if (c->state == SENDING && (ready[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            push(c);
        if (ready[i].events & ~(unsigned)EPOLLOUT) {
            if (c->state == SENDING || c->state == WAITING)
                mode == HTTP ? pull_answer(c) : pull(c);
            else if (c->state == QUIET && ready[i].events & (EPOLLHUP | EPOLLERR | EPOLLIN)) {
                errno = 0;
                fail(c, "idle connection closed");
            }
        }
    }
}

/* Open connections, a few at a time, and have one echo over each: then the server's handler is there and waits. */
static void open_all(struct conn *all, size_t count) {
    uint64_t end = now() + OPEN_LIMIT;
    size_t next = 0;
    opening = 1;
    opened = failed = 0;
    while (opened + failed < count && now() < end) {
        while (next < count && next - opened - failed < OPENING)
            open_one(&all[next++]);
        turn(10);
    }
    for (size_t i = 0; i < next; i++) /* too late: as if it had failed */
        if (all[i].state == SENDING || all[i].state == WAITING) {
            errno = ETIMEDOUT;
            fail(&all[i], "open");
        }
    opening = 0;
}

static void drain(void) {
    uint64_t end = now() + DRAIN_LIMIT;
    draining = 1;
    while (in_flight && now() < end)
        turn(10);
    draining = 0;
}

/* Messages at a steady rate: each connection has its own moments, and misses those at which it still waits. */
static void send_what_is_due(struct conn *all, uint64_t start, uint64_t *sent) {
    uint64_t time = now(), due = (uint64_t)((double)(time - start) * rate / SECOND);
    if (due > *sent + active)
        *sent = due - active;
    for (; *sent < due; ++*sent)
        if (all[*sent % active].state == QUIET)
            begin(&all[*sent % active], now());
}

static void run(struct conn *all, double length) {
    uint64_t start = now(), end = start + (uint64_t)(length * 1e9), sent = 0;
    for (size_t i = 0; i < active && mode != TTFB; i++) {
        if (mode == CONNECT)
            open_one(&all[i]);
        else if (all[i].state == QUIET)
            begin(&all[i], now());
    }
    while (now() < end) {
        if (mode == TTFB)
            send_what_is_due(all, start, &sent);
        turn(mode == TTFB ? 1 : 20);
        for (size_t i = 0; mode == CONNECT && lost && i < active; i++)
            if (all[i].state == CLOSED)
                open_one(&all[i]);
        lost = 0;
    }
}

static void open_neighbour(struct conn *c) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c}; /* a read a turn, so that the others get theirs */
    c->message = "S";
    size_t usual = size;
    size = 1;
    c->state = SENDING;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c->fd, (void *)&server, sizeof server) < 0)
        die("connect");
    push(c);
    size = usual;
    c->state = STREAMING;
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

static size_t count_stalled(const struct conn *all, uint64_t time) {
    size_t stalled = 0;
    for (size_t i = 0; i < active; i++) {
        if (all[i].state != SENDING && all[i].state != WAITING)
            continue;
        uint64_t age = time - all[i].began;
        stalled += age > STALLED;
        if (mode == TTFB && age > FORGOTTEN)
            took(age);
    }
    return stalled;
}

static void options(int count, char **arguments) {
    if (count < 2)
        exit(2);
    for (mode = ECHO; mode <= TTFB && strcmp(arguments[1], MODES[mode]); mode++)
        ;
    for (int option; (option = getopt(count - 1, arguments + 1, "p:c:i:s:t:w:r:S:x:")) != -1;) {
        double value = atof(optarg);
        switch (option) {
        case 'p': port = (int)value; break;
        case 'c': active = (size_t)value; break;
        case 'i': idle = (size_t)value; break;
        case 's': size = (size_t)value; break;
        case 't': seconds = value; break;
        case 'w': warm_up = value; break;
        case 'r': rate = value; break;
        case 'S': server_pid = (pid_t)value; break;
        case 'x': choose_header((int)value); break;
        default: exit(2);
        }
    }
    if (mode > TTFB || port <= 0 || !active || !size || seconds <= 0 || seconds > 60 || warm_up < 0 || warm_up > 60 ||
        (header && mode != CONNECT)) {
        fprintf(stderr, "load: see the head of load.c for what it takes\n");
        exit(2);
    }
}

static void prepare(int count, char **arguments) {
    options(count, arguments);
    alarm(200); /* whatever happens */
    raise_file_limit();
    make_messages();
    buffer = room((size > STREAM_READ ? size : STREAM_READ) + 1);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
}

static void open_and_warm_up(struct conn *all) {
    if (mode != CONNECT)
        open_all(all, active);
    if (mode == TTFB)
        open_neighbour(all + active + idle);
    run(all, warm_up);
    drain();
}

static void measure(struct conn *all) {
    uint64_t start = now();
    double own = cpu_of(getpid()), servers = cpu_of(server_pid);
    measuring = 1;
    run(all, seconds);
    measuring = 0;
    uint64_t end = now();
    own = cpu_of(getpid()) - own;
    servers = cpu_of(server_pid) - servers;
    size_t stalled = count_stalled(all, end);
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"cpu\": %.6f, \"server_cpu\": %.6f, \"streamed\": %llu, ",
           (unsigned long long)answered, (double)(end - start) / 1e9, own, servers, (unsigned long long)streamed);
    printf("\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f, \"stalled\": %zu, ", percentile(0.5),
           percentile(0.9), percentile(0.99), (double)longest / 1000, stalled);
}

int main(int count, char **arguments) {
    prepare(count, arguments);
    struct conn *all = room((active + idle + 1) * sizeof *all);
    for (size_t i = 0; i < active + idle; i++)
        all[i].id = (unsigned)i;
    open_and_warm_up(all);
    long before = memory_of(server_pid, "VmRSS:");
    uint64_t start = now();
    if (mode == IDLE)
        open_all(all + active, idle);
    double opening_took = (double)(now() - start) / 1e9;
    long with_them = memory_of(server_pid, "VmRSS:");
    measure(all);
    size_t still_open = 0;
    for (size_t i = active; i < active + idle; i++)
        still_open += all[i].state == QUIET;
    drain(); /* so that the connections end in good order */
    printf("\"errors\": %llu, \"first_error\": \"%s\", \"idle\": %zu, \"opening\": %.6f, \"rss_before\": %ld, "
           "\"rss_with\": %ld}\n",
           (unsigned long long)errors, first_error, still_open, opening_took, before, with_them);
    return 0;
}
