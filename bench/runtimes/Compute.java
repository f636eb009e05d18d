// What a Java compiler meets: recursion, virtual calls, collections, strings, matrices; as often as it is told.
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

public final class Compute {
    interface Shape { long area(); }

    record Square(long side) implements Shape { public long area() { return side * side; } }

    record Rectangle(long a, long b) implements Shape { public long area() { return a * b; } }

    record Disc(long radius) implements Shape { public long area() { return 3 * radius * radius; } }

    static long fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

    static long shapes(int rounds) {
        long sum = 0;
        for (int i = 0; i < rounds; i++) {
            Shape shape = switch (i % (1 + (i >> 14 & 3))) {
                case 0 -> new Square(i & 1023);
                case 1 -> new Rectangle(i & 1023, 2);
                default -> new Disc(i & 1023);
            };
            sum = (sum + shape.area()) % 1_000_000_007L;
        }
        return sum;
    }

    static int words(int rounds) {
        Map<String, Integer> counts = new HashMap<>();
        for (int i = 0; i < rounds; i++) counts.merge("word" + i * 7919L % 997, 1, Integer::sum);
        List<String> names = new ArrayList<>(counts.keySet());
        Collections.sort(names);
        return String.join(",", names).hashCode();
    }

    static double matrix(int size) {
        double[][] a = new double[size][size], b = new double[size][size];
        for (int i = 0; i < size; i++)
            for (int j = 0; j < size; j++) {
                a[i][j] = (i * size + j) % 17;
                b[i][j] = (i * size + j) % 13;
            }
        double trace = 0;
        for (int i = 0; i < size; i++)
            for (int j = 0; j < size; j++) {
                double sum = 0;
                for (int k = 0; k < size; k++) sum += a[i][k] * b[k][j];
                if (i == j) trace += sum;
            }
        return trace;
    }

    public static void main(String[] arguments) {
        for (int round = Integer.parseInt(arguments[0]); round > 0; round--) {
            System.out.println(fib(32));
            System.out.println(shapes(4_000_000));
            System.out.println(words(300_000));
            System.out.println(matrix(250));
        }
    }
}
