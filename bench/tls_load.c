/* The load over TLS 1.3: one process, one thread, one epoll set, as load.c, which makes the one without.
 *
 *     tls_load MODE -p PORT [-c CONNECTIONS] [-s SIZE] [-t SECONDS] [-w WARM_UP] [-S SERVER_PID]
 *
 * echo     each connection sends a message, waits for the echo, and so on
 * full     connect, shake hands, send, wait for the echo, say close_notify, wait for the server's end; so many at a time
 * resumed  the same with a ticket that the server has given to an earlier connection
 * check    only see whether OpenSSL's library is there
 *
 * Every byte echoed is compared with what was sent; the server's certificate is not judged, only its signature is. All
 * waiting is bounded. Prints one line of JSON, as load.c does: `messages` are echoes, or whole connections, whose times
 * are those until the echo is there. `resumed` counts the handshakes that were, `truncated` the ends of servers that
 * said no close_notify, both with the warm-up's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>

#include "tls.h"

enum { EVENTS = 512, VARIANTS = 251, OPENING = 64, LARGEST = 1 << 24 };
#define OPEN_LIMIT (20 * SECOND) /* to open all connections */
#define DRAIN_LIMIT (2 * SECOND) /* to wait for what is still on its way */
#define STALLED SECOND           /* an answer that takes longer has not come */

enum mode { ECHO, FULL, RESUMED };
static const char *const MODES[] = {"echo", "full", "resumed"};
enum state { CLOSED, SHAKING, SENDING, WAITING, PARTING, QUIET };

struct conn {
    int fd;
    enum state state;
    unsigned id, count;
    size_t got;
    uint64_t began;
    const char *message;
    SSL *ssl;
    SSL_SESSION *session; /* the newest that it may resume */
};

static enum mode mode;
static int port, poll_fd;
static size_t size = 64, active = 1;
static double seconds = 1, warm_up = 0.1;
static pid_t server_pid;

static SSL_CTX *context;
static char *messages, *buffer;
static uint64_t answered, errors, resumed, truncated;
static size_t opened, in_flight;
static int opening, draining, measuring, lost;
static char first_error[128];

/* -- one connection -- */

static void drop(struct conn *c) {
    in_flight -= c->state != QUIET;
    SSL_free(c->ssl);
    close(c->fd);
    c->state = CLOSED;
}

static void fail(struct conn *c, const char *what, const char *reason) {
    if (!*first_error)
        snprintf(first_error, sizeof first_error, "%s%s%s", what, reason ? ": " : "", reason ? reason : "");
    drop(c);
    errors++;
    opened += (size_t)opening;
    lost = 1;
}

/* Whether a call has only to be made again when the set tells; else the connection has failed. */
static int waits(struct conn *c, int result, const char *what) {
    int system = errno, error = SSL_get_error(c->ssl, result);
    if (error == ERROR_WANT_READ || error == ERROR_WANT_WRITE)
        return 1;
    unsigned long code = error == ERROR_SSL ? ERR_peek_error() : 0;
    const char *reason = code ? ERR_reason_error_string(code) : error == ERROR_SYSCALL && system ? strerror(system) : 0;
    fail(c, what, error == ERROR_ZERO_RETURN ? "closed by the server" : reason);
    ERR_clear_error();
    return 0;
}

static int keep_ticket(SSL *ssl, SSL_SESSION *session) {
    struct conn *c = SSL_get_ex_data(ssl, 0);
    if (c->session)
        SSL_SESSION_free(c->session);
    c->session = session;
    return 1; /* it is ours now */
}

static void begin(struct conn *c, uint64_t time) {
    c->message = messages + (c->id * 7 + c->count++) % VARIANTS;
    c->got = 0;
    c->began = time;
    c->state = SENDING;
}

static void open_one(struct conn *c) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->began = now();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    choose_source(c->fd, c->count);
    if (connect(c->fd, (void *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* a message must not wait for a handshake's last word */
    c->ssl = new_connection(context, c->fd);
    SSL_set_ex_data(c->ssl, 0, c);
    SSL_set_connect_state(c->ssl);
    if (mode == RESUMED && c->session)
        SSL_set_session(c->ssl, c->session);
    c->state = SHAKING;
    in_flight++;
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* The steps say whether the next one may be taken at once. */

static int shake(struct conn *c) {
    int result = SSL_do_handshake(c->ssl);
    if (result != 1) {
        waits(c, result, "handshake");
        return 0;
    }
    if (mode == RESUMED && SSL_session_reused(c->ssl))
        resumed++;
    else if (mode == RESUMED && measuring) {
        fail(c, "not resumed", NULL);
        return 0;
    }
    begin(c, c->began);
    return 1;
}

static int push(struct conn *c) {
    int n = SSL_write(c->ssl, c->message, (int)size);
    if (n <= 0) {
        waits(c, n, "send");
        return 0;
    }
    c->state = WAITING;
    return 1;
}

static int complete(struct conn *c) {
    uint64_t time = now();
    if (measuring)
        took(time - c->began);
    if (mode != ECHO) {
        SSL_shutdown(c->ssl);
        c->state = PARTING;
        return 1;
    }
    answered += (uint64_t)measuring;
    opened += (size_t)opening;
    if (opening || draining) {
        in_flight--;
        c->state = QUIET;
        return 0;
    }
    begin(c, time);
    return 1;
}

static int pull(struct conn *c) {
    size_t left = size - c->got;
    int n = SSL_read(c->ssl, buffer, (int)left + 1); /* one more: a server that sends too much is wrong, too */
    if (n <= 0) {
        waits(c, n, "recv");
        return 0;
    }
    if ((size_t)n > left || memcmp(buffer, c->message + c->got, (size_t)n)) {
        fail(c, "wrong bytes", NULL);
        return 0;
    }
    c->got += (size_t)n;
    return c->got < size || complete(c);
}

static int part(struct conn *c) {
    int n = SSL_read(c->ssl, buffer, 1), error = SSL_get_error(c->ssl, n);
    if (error == ERROR_WANT_READ)
        return 0;
    if (n > 0) {
        fail(c, "bytes after the echo", NULL);
        return 0;
    }
    truncated += error != ERROR_ZERO_RETURN;
    ERR_clear_error();
    drop(c);
    answered += (uint64_t)measuring;
    opened += (size_t)opening;
    if (!opening && !draining)
        open_one(c);
    return 0;
}

/* What nobody waits for: tickets, or the server's end. */
static int look(struct conn *c) {
    int n = SSL_read(c->ssl, buffer, 1);
    if (n > 0)
        fail(c, "bytes that nobody has asked for", NULL);
    else
        waits(c, n, "idle connection");
    return 0;
}

static void advance(struct conn *c) {
    static int (*const steps[])(struct conn *) = {NULL, shake, push, pull, part, look};
    while (c->state != CLOSED && steps[c->state](c))
        ;
}

/* -- all of them -- */

static void turn(int milliseconds) {
    struct epoll_event ready[EVENTS];
    int found = epoll_wait(poll_fd, ready, EVENTS, milliseconds);
    for (int i = 0; i < found; i++)
        advance(ready[i].data.ptr);
}

/* Open connections, a few at a time, and have one echo over each; or one whole connection, so that there is a ticket. */
static void open_all(struct conn *all) {
    uint64_t end = now() + OPEN_LIMIT;
    size_t next = 0;
    opening = 1;
    while (opened < active && now() < end) {
        while (next < active && next - opened < OPENING)
            open_one(&all[next++]);
        turn(10);
    }
    for (size_t i = 0; i < next; i++)
        if (all[i].state != CLOSED && all[i].state != QUIET)
            fail(&all[i], "open", strerror(ETIMEDOUT));
    opening = 0;
}

static void drain(void) {
    uint64_t end = now() + DRAIN_LIMIT;
    draining = 1;
    while (in_flight && now() < end)
        turn(10);
    draining = 0;
}

static void open_lost_ones(struct conn *all) {
    for (size_t i = 0; mode != ECHO && lost && i < active; i++)
        if (all[i].state == CLOSED)
            open_one(&all[i]);
    lost = 0;
}

static void run(struct conn *all, double length) {
    uint64_t end = now() + (uint64_t)(length * 1e9);
    lost = 1; /* none of those that are to be opened is open */
    for (size_t i = 0; i < active; i++)
        if (all[i].state == QUIET) {
            in_flight++;
            begin(&all[i], now());
            advance(&all[i]);
        }
    while (now() < end) {
        open_lost_ones(all);
        turn(20);
    }
}

static size_t count_stalled(const struct conn *all, uint64_t time) {
    size_t stalled = 0;
    for (size_t i = 0; i < active; i++)
        stalled += all[i].state != CLOSED && all[i].state != QUIET && time - all[i].began > STALLED;
    return stalled;
}

static int trust(X509_STORE_CTX *store, void *nothing) {
    (void)store;
    (void)nothing;
    return 1;
}

static void prepare_tls(void) {
    const char *why_not = find_openssl();
    if (why_not) {
        fprintf(stderr, "%s\n", why_not);
        exit(3);
    }
    context = new_context(TLS_client_method());
    SSL_CTX_set_cert_verify_callback(context, trust, NULL);
    SSL_CTX_ctrl(context, CTRL_SESSION_CACHE, CACHE_CLIENT | CACHE_NOTHING_INSIDE, NULL);
    if (mode == RESUMED)
        SSL_CTX_sess_set_new_cb(context, keep_ticket);
}

static void options(int count, char **arguments) {
    int known = count > 1;
    for (mode = ECHO; known && mode <= RESUMED && strcmp(arguments[1], MODES[mode]); mode++)
        ;
    for (int option; known && (option = getopt(count - 1, arguments + 1, "p:c:s:t:w:S:")) != -1;) {
        double value = atof(optarg ? optarg : "");
        switch (option) {
        case 'p': port = (int)value; break;
        case 'c': active = (size_t)value; break;
        case 's': size = (size_t)value; break;
        case 't': seconds = value; break;
        case 'w': warm_up = value; break;
        case 'S': server_pid = (pid_t)value; break;
        default: known = 0;
        }
    }
    if (!known || mode > RESUMED || port <= 0 || !active || !size || size > LARGEST || seconds <= 0 || seconds > 60 ||
        warm_up < 0 || warm_up > 60) {
        fprintf(stderr, "tls_load: see the head of tls_load.c for what it takes\n");
        exit(2);
    }
}

static void prepare(int count, char **arguments) {
    if (count == 2 && !strcmp(arguments[1], "check")) {
        prepare_tls();
        exit(0);
    }
    options(count, arguments);
    alarm(200); /* whatever happens */
    raise_file_limit();
    prepare_tls();
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    messages = room(VARIANTS + size);
    write_letters(messages, VARIANTS + size);
    buffer = room(size + 1);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
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
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"cpu\": %.6f, \"server_cpu\": %.6f, ",
           (unsigned long long)answered, (double)(end - start) / 1e9, own, servers);
    printf("\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f, \"stalled\": %zu, ", percentile(0.5),
           percentile(0.9), percentile(0.99), (double)longest / 1000, stalled);
}

int main(int count, char **arguments) {
    prepare(count, arguments);
    struct conn *all = room(active * sizeof *all);
    for (size_t i = 0; i < active; i++)
        all[i].id = (unsigned)i;
    open_all(all);
    run(all, warm_up);
    drain();
    measure(all);
    drain(); /* so that the connections end in good order */
    for (size_t i = 0; i < active; i++)
        if (all[i].state == QUIET)
            SSL_shutdown(all[i].ssl);
    printf("\"errors\": %llu, \"first_error\": \"%s\", \"resumed\": %llu, \"truncated\": %llu}\n",
           (unsigned long long)errors, first_error, (unsigned long long)resumed, (unsigned long long)truncated);
    return 0;
}
