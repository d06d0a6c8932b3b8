/* Preloaded into every program of a place, this writes each start of one to LOG: a line with the process,
 * its user, its argv and its parent's, both in hex.  No header and no start-up code is needed
 * to build it.  Where there is no LOG, nothing happens.
 */
typedef long ssize;
extern int open(const char *path, int flags, ...);
extern ssize read(int fd, void *data, unsigned long size);
extern ssize write(int fd, const void *data, unsigned long size);
extern int close(int fd);
extern int getpid(void), getppid(void);
extern unsigned getuid(void);

enum { READING = 0, APPENDING = 1 | 02000, CLOSED_ON_EXEC = 02000000, MOST = 1 << 18 };

static char line[MOST + 64], parent[1 << 16];
static unsigned long size;

static void add_number(unsigned long number) {
    char digits[24];
    int count = 0;
    do
        digits[count++] = '0' + number % 10;
    while (number /= 10);
    while (count)
        line[size++] = digits[--count];
    line[size++] = ' ';
}

static void add_byte(unsigned char byte) {
    if (size < MOST) {
        line[size++] = "0123456789abcdef"[byte >> 4];
        line[size++] = "0123456789abcdef"[byte & 15];
    }
}

static void add_parent(unsigned long number) {
    char path[32] = "/proc/", digits[24];
    int at = 6, count = 0, fd;
    do
        digits[count++] = '0' + number % 10;
    while (number /= 10);
    while (count)
        path[at++] = digits[--count];
    for (count = 0; count < 9; count++)
        path[at++] = "/cmdline"[count];
    fd = open(path, READING | CLOSED_ON_EXEC);
    if (fd < 0)
        return;
    ssize length = read(fd, parent, sizeof parent);
    close(fd);
    for (ssize index = 0; index < length; index++)
        add_byte(parent[index]);
}

__attribute__((constructor)) static void record(int argc, char **argv) {
    int log = open(LOG, APPENDING | CLOSED_ON_EXEC);
    if (log < 0)
        return;
    add_number(getpid());
    add_number(getuid());
    for (int word = 0; word < argc; word++) {
        for (char *letter = argv[word]; *letter; letter++)
            add_byte(*letter);
        add_byte(0);
    }
    line[size++] = ' ';
    add_parent(getppid());
    line[size++] = '\n';
    write(log, line, size);
    close(log);
}
